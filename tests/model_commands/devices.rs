//! `--device` on machines and builds that lack what it names.

use super::{run_and_listen, tiny};

/// Whether this build has kernels and this machine a GPU for them.
fn has_gpu() -> bool {
    #[cfg(feature = "cuda")]
    return medft_engine::backend::cuda::Cuda::open_usable().is_ok();
    #[cfg(not(feature = "cuda"))]
    false
}

#[test]
fn a_gpu_that_is_asked_for_and_is_not_there_is_an_error_with_a_way_out() {
    if has_gpu() {
        return;
    }
    let (_dir, model, ids) = tiny("[[1, 2]]");
    let score = [
        "score", "--model", &model, "--ids", &ids, "--device", "cuda",
    ];
    let (code, stdout, stderr) = run_and_listen(&score);
    assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let says = match cfg!(feature = "cuda") {
        true => ["error: `--device cuda`: ", "medft-engine doctor"],
        false => ["no CUDA kernels", "--features cuda"],
    };
    for part in says.into_iter().chain(["`--device cpu`"]) {
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn a_build_with_kernels_says_once_why_it_computes_on_the_cpu() {
    if has_gpu() {
        return;
    }
    let (_dir, model, ids) = tiny("[[1, 2]]");
    let score = ["score", "--model", &model, "--ids", &ids];
    let (code, _, stderr) = run_and_listen(&score);
    assert_eq!(code, 0, "{stderr}");
    let noted = stderr.starts_with("note: ") && stderr.ends_with("; computing on the CPU\n");
    assert_eq!(noted, cfg!(feature = "cuda"), "{stderr}");
    assert_eq!(stderr.lines().count(), usize::from(noted), "{stderr}");
    let cpu = [&score[..], &["--device", "cpu"]].concat();
    assert_eq!(run_and_listen(&cpu).2, "");
}
