//! Compiles each kernel family (`*.cu`) to one fatbin, when feature `cuda` is on.
//!
//! One unit is (file, architecture); units run in parallel, and a unit whose sources, flags and compiler are unchanged is not compiled again.
//! `MEDFT_CUDA_ARCHS` (as `sm_90a,sm_80`) narrows the architectures. A file `*_hopper.cu` is for sm_90a alone.

// Cargo shows a failed build script's stderr.
#![allow(clippy::print_stderr)]

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::{env, fs, thread};

/// A100; 4090; H100 and H200; 5090; and PTX for what comes after.
const ARCHS: &[&str] = &["sm_80", "sm_89", "sm_90a", "sm_120", "compute_80"];

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("\n{message}\n");
            ExitCode::FAILURE
        }
    }
}

/// One call of nvcc.
struct Unit {
    source: PathBuf,
    arch: String,
    output: PathBuf,
    key: u64,
}

fn compile() -> Result<(), String> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").map_err(|e| e.to_string())?);
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|e| e.to_string())?);
    for name in [
        "NVCC",
        "CUDA_HOME",
        "PATH",
        "MEDFT_CUDA_ARCHS",
        "VIRTUAL_ENV",
    ] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let (sources, headers) = (files(&here, "cu")?, files(&here.join("prim"), "cuh")?);
    let mut shared = DefaultHasher::new();
    for path in &headers {
        watch(path)?.hash(&mut shared);
    }
    println!("cargo:rerun-if-changed={}", here.display());
    println!("cargo:rerun-if-changed={}", here.join("prim").display());
    let nvcc = find_nvcc()?;
    let version = version(&nvcc)?;
    version.hash(&mut shared);
    let archs = env::var("MEDFT_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.join(","));
    let archs: Vec<&str> = archs
        .split(',')
        .map(str::trim)
        .filter(|a| !a.is_empty())
        .collect();

    let mut units = Vec::new();
    for source in &sources {
        let text = watch(source)?;
        let family = stem(source);
        for arch in &archs {
            if family.ends_with("_hopper") && *arch != "sm_90a" {
                continue;
            }
            let mut key = shared.clone();
            (&text, arch, flags(arch)).hash(&mut key);
            units.push(Unit {
                source: source.clone(),
                arch: (*arch).to_string(),
                output: out.join(format!("{family}.{arch}.bin")),
                key: key.finish(),
            });
        }
    }
    compile_all(&nvcc, &units)?;

    let mut table = String::from(
        "/// Machine code of each kernel family.\npub const FATBINS: &[(&str, &[u8])] = &[\n",
    );
    for source in &sources {
        let family = stem(source);
        let parts: Vec<&Unit> = units.iter().filter(|u| u.source == *source).collect();
        if parts.is_empty() {
            continue;
        }
        let fatbin = out.join(format!("{family}.fatbin"));
        link(&nvcc, &parts, &fatbin)?;
        table += &format!(
            "    (\"{family}\", include_bytes!({:?})),\n",
            fatbin.display().to_string()
        );
    }
    table += "];\n";
    // `.ci/kernels` compares reports of one compiler only.
    fs::write(out.join("nvcc.txt"), &version).map_err(|e| e.to_string())?;
    let (major, minor) = release(&version)?;
    table += &format!(
        "/// Version of the CUDA compiler that made them.\npub const TOOLKIT: (u32, u32) = ({major}, {minor});\n\
         /// What they were compiled for.\npub const ARCHITECTURES: &[&str] = &{archs:?};\n"
    );
    fs::write(out.join("fatbins.rs"), table).map_err(|e| e.to_string())
}

/// The flags of one architecture; PTX for `compute_NN`.
fn flags(arch: &str) -> Vec<String> {
    let mut flags: Vec<String> = [
        "-std=c++17",
        "-O3",
        "-Xptxas=-v,--warn-on-spills",
        "-diag-suppress=177",
    ]
    .map(String::from)
    .into();
    match arch.strip_prefix("sm_") {
        Some(number) => flags.extend([
            "-cubin".into(),
            format!("-gencode=arch=compute_{number},code={arch}"),
        ]),
        None => flags.extend(["-ptx".into(), format!("-arch={arch}")]),
    }
    flags
}

fn compile_all(nvcc: &Path, units: &[Unit]) -> Result<(), String> {
    let stale: Vec<&Unit> = units
        .iter()
        .filter(|u| fs::read_to_string(key_file(u)).ok() != Some(u.key.to_string()))
        .collect();
    let queue = Mutex::new(stale.into_iter());
    let failures = Mutex::new(Vec::new());
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let Some(unit) = queue.lock().ok().and_then(|mut q| q.next()) else {
                        return;
                    };
                    if let Err(e) = compile_unit(nvcc, unit)
                        && let Ok(mut failures) = failures.lock()
                    {
                        failures.push(e);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    if failures.is_empty() {
        Ok(())
    } else {
        Err(failures.join("\n"))
    }
}

fn compile_unit(nvcc: &Path, unit: &Unit) -> Result<(), String> {
    let _ = fs::remove_file(key_file(unit));
    let output = Command::new(nvcc)
        .args(flags(&unit.arch))
        .arg("-o")
        .arg(&unit.output)
        .arg(&unit.source)
        .output();
    let output = output.map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let report = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        return Err(format!(
            "nvcc could not compile {} for {}:\n{said}{report}",
            unit.source.display(),
            unit.arch
        ));
    }
    // ptxas's report (registers, spills, notes): .ci/kernels reads it.
    fs::write(unit.output.with_extension("ptxas"), report.as_bytes()).map_err(|e| e.to_string())?;
    fs::write(key_file(unit), unit.key.to_string()).map_err(|e| e.to_string())
}

fn key_file(unit: &Unit) -> PathBuf {
    unit.output.with_extension("key")
}

/// Joins the machine code of one family. A fatbin holds alternatives of one module, so each architecture stands in it once.
fn link(nvcc: &Path, parts: &[&Unit], fatbin: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc.with_file_name("fatbinary"));
    command.arg(format!("--create={}", fatbin.display()));
    for unit in parts {
        let (kind, number) = match unit.arch.strip_prefix("sm_") {
            Some(number) => ("elf", number),
            None => ("ptx", unit.arch.trim_start_matches("compute_")),
        };
        command.arg(format!(
            "--image3=kind={kind},sm={number},file={}",
            unit.output.display()
        ));
    }
    let output = command.output().map_err(|e| format!("fatbinary: {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "fatbinary: {}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

/// $NVCC, $CUDA_HOME, PATH, /usr/local/cuda, then pip's nvidia/cu13 in the active or a nearby virtual environment.
fn find_nvcc() -> Result<PathBuf, String> {
    let mut places: Vec<PathBuf> = Vec::new();
    places.extend(env::var_os("NVCC").map(PathBuf::from));
    places.extend(env::var_os("CUDA_HOME").map(|d| PathBuf::from(d).join("bin/nvcc")));
    if let Some(path) = env::var_os("PATH") {
        places.extend(env::split_paths(&path).map(|d| d.join("nvcc")));
    }
    places.push("/usr/local/cuda/bin/nvcc".into());
    let here = env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .unwrap_or_default();
    let near = [
        here.join("../.venv"),
        here.join("../../venv"),
        here.join("../../.venv"),
    ];
    for environment in env::var_os("VIRTUAL_ENV")
        .map(PathBuf::from)
        .into_iter()
        .chain(near)
    {
        let Ok(pythons) = fs::read_dir(environment.join("lib")) else {
            continue;
        };
        places.extend(
            pythons
                .flatten()
                .map(|p| p.path().join("site-packages/nvidia/cu13/bin/nvcc")),
        );
    }
    places.into_iter().find(|p| p.is_file()).ok_or_else(|| {
        "feature `cuda` needs nvcc (CUDA 12.8 or newer) and found none; get it without root by `python3 -m venv .venv && .venv/bin/pip install \
         \"nvidia-cuda-nvcc==13.0.*\" \"nvidia-cuda-crt==13.0.*\" \"nvidia-nvvm==13.0.*\" \"nvidia-cuda-runtime==13.0.*\" \"nvidia-cuda-cccl==13.0.*\"`, \
         or set NVCC to its path"
            .to_string()
    })
}

fn version(nvcc: &Path) -> Result<Vec<u8>, String> {
    let output = Command::new(nvcc).arg("--version").output();
    Ok(output
        .map_err(|e| format!("{}: {e}", nvcc.display()))?
        .stdout)
}

/// The numbers in nvcc's "release 13.0, V13.0.88".
fn release(version: &[u8]) -> Result<(u32, u32), String> {
    let text = String::from_utf8_lossy(version);
    let number = text
        .split_once("release ")
        .and_then(|(_, rest)| rest.split(',').next()?.trim().split_once('.'))
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    number.ok_or_else(|| format!("`nvcc --version` says no release: {text}"))
}

fn files(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    Ok(found)
}

fn watch(path: &Path) -> Result<Vec<u8>, String> {
    println!("cargo:rerun-if-changed={}", path.display());
    fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
