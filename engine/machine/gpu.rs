//! What `doctor` knows of GPUs: the driver, each GPU and its kernels, and what to do where something is missing.
//!
//! Holds facts that others fill in and what follows from them; the rules know no driver, so they are tested without one.

use crate::backend::facts::Memory;
use serde::{Deserialize, Serialize};

/// The oldest compute capability that any kernel runs on (Ampere).
pub const OLDEST: (u32, u32) = (8, 0);

/// CUDA kernels of this build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernels {
    /// Version of the compiler, as (13, 0): the driver must be as new.
    pub toolkit: (u32, u32),
    /// What they were compiled for, as `sm_90a`; `compute_80` is PTX, which a driver compiles for any newer GPU.
    pub architectures: Vec<String>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gpu {
    /// As "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// As (9, 0), if the driver could be asked.
    pub capability: Option<(u32, u32)>,
    /// Its memory, if it could be opened.
    pub memory: Option<Memory>,
    /// The kernels that it gets, in words.
    pub kernels: Option<String>,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// Driver, GPUs and kernels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graphics {
    /// Version of the driver, as "580.65.06".
    pub driver: Option<String>,
    /// The newest CUDA that the driver speaks, as (13, 0).
    pub driver_cuda: Option<(u32, u32)>,
    /// Of this build.
    pub kernels: Option<Kernels>,
    /// All GPUs that could be seen.
    pub gpus: Vec<Gpu>,
    /// Why CUDA could not be opened at all.
    pub problem: Option<String>,
    /// A compiler for CUDA kernels; it is needed only to build.
    pub nvcc: Option<String>,
}

impl Kernels {
    /// What a GPU runs of these: the words for it, or why it cannot run any.
    ///
    /// # Errors
    /// A sentence with a way out.
    pub fn for_gpu(
        &self,
        (major, minor): (u32, u32),
        driver: (u32, u32),
        hopper: bool,
    ) -> Result<String, String> {
        if (major, minor) < OLDEST {
            return Err(format!(
                "compute capability {major}.{minor} is too old: the kernels need {}.{} (Ampere) or newer; use `--device cpu`",
                OLDEST.0, OLDEST.1
            ));
        }
        if driver.0 < self.toolkit.0 {
            return Err(format!(
                "the driver speaks CUDA {}.{} and this build's kernels are CUDA {}.{}: install NVIDIA driver {} or newer",
                driver.0,
                driver.1,
                self.toolkit.0,
                self.toolkit.1,
                oldest_driver(self.toolkit)
            ));
        }
        let fits = |name: &&String| match architecture(name) {
            Some((Kind::Machine, m, n)) => m == major && n <= minor,
            Some((Kind::Exact, m, n)) => (m, n) == (major, minor),
            _ => false,
        };
        let words = match (hopper, std::env::var_os("MEDFT_PORTABLE").is_some()) {
            (true, _) => "Hopper (TMA and wgmma)",
            (false, true) if (major, minor) == (9, 0) => {
                "portable (mma.sync): MEDFT_PORTABLE switches Hopper's off"
            }
            _ => "portable (mma.sync)",
        };
        if let Some(name) = self.architectures.iter().find(fits) {
            return Ok(format!("{words}, {name}"));
        }
        let ptx = self.architectures.iter().find(|name| {
            matches!(architecture(name), Some((Kind::Ptx, m, n)) if (m, n) <= (major, minor))
        });
        match ptx {
            Some(name) => Ok(format!(
                "{words}, compiled by the driver from {name} at first use"
            )),
            None => Err(format!(
                "this build has kernels for {} and none for compute capability {major}.{minor}: build with `MEDFT_CUDA_ARCHS=sm_{major}{minor}`, or without that variable for all",
                self.architectures.join(", ")
            )),
        }
    }
}

/// The first driver of a CUDA version's line; every later one runs what it compiles (NVIDIA's minor-version compatibility).
fn oldest_driver((major, _): (u32, u32)) -> String {
    match major {
        12 => "525".to_string(),
        13 => "580".to_string(),
        other => format!("for CUDA {other}"),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `sm_80`: this minor version and later ones.
    Machine,
    /// `sm_90a`: this one alone.
    Exact,
    /// `compute_80`.
    Ptx,
}

/// An architecture's kind and number.
fn architecture(name: &str) -> Option<(Kind, u32, u32)> {
    let (kind, rest) = match (name.strip_prefix("sm_"), name.strip_prefix("compute_")) {
        (Some(rest), _) => match rest.strip_suffix(['a', 'f']) {
            Some(rest) => (Kind::Exact, rest),
            None => (Kind::Machine, rest),
        },
        (None, Some(rest)) => (Kind::Ptx, rest),
        (None, None) => return None,
    };
    let number: u32 = rest.parse().ok()?;
    Some((kind, number / 10, number % 10))
}

impl Graphics {
    /// Whether there is a GPU that this build can use.
    pub fn usable(&self) -> bool {
        self.gpus.iter().any(|g| g.kernels.is_some())
    }

    /// Lines for people, and what to do.
    pub fn report(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (i, gpu) in self.gpus.iter().enumerate() {
            let mut line = format!("gpu {i}      {}", gpu.name);
            if let Some((major, minor)) = gpu.capability {
                line += &format!(", compute capability {major}.{minor}");
            }
            if let Some(memory) = gpu.memory {
                let gib = |bytes: u64| bytes as f64 / 1_073_741_824.0;
                line += &format!(
                    ", {:.1} GiB free of {:.1} GiB",
                    gib(memory.free),
                    gib(memory.total)
                );
            }
            if let Some(kernels) = &gpu.kernels {
                line += &format!("; kernels: {kernels}");
            }
            lines.push(line);
        }
        if self.gpus.is_empty() {
            lines.push("gpu        none found; everything runs on the CPU".into());
        }
        let driver = match (&self.driver, self.driver_cuda) {
            (Some(version), Some((major, minor))) => {
                format!("NVIDIA {version}, CUDA {major}.{minor}")
            }
            (Some(version), None) => format!("NVIDIA {version}"),
            (None, Some((major, minor))) => format!("NVIDIA, CUDA {major}.{minor}"),
            (None, None) => "no NVIDIA driver".to_string(),
        };
        lines.push(format!("driver     {driver}"));
        lines.push(match &self.kernels {
            Some(k) => format!(
                "kernels    in this build, by CUDA {}.{}: {}",
                k.toolkit.0,
                k.toolkit.1,
                k.architectures.join(", ")
            ),
            None => "kernels    none for GPUs: this build computes on the CPU".into(),
        });
        lines.extend(
            self.advice()
                .into_iter()
                .map(|advice| format!("to do      {advice}")),
        );
        lines
    }

    /// What to do where something is missing; nothing where the GPU works, or where there is none.
    pub fn advice(&self) -> Vec<String> {
        let mut advice: Vec<String> = self
            .gpus
            .iter()
            .enumerate()
            .filter_map(|(i, g)| Some(format!("GPU {i}: {}", g.problem.as_ref()?)))
            .collect();
        if self.gpus.is_empty() {
            match (&self.driver, &self.problem) {
                (Some(version), _) => advice.push(format!(
                    "driver {version} shows no GPU: is it visible to this process (CUDA_VISIBLE_DEVICES, `docker run --gpus all`)?"
                )),
                (None, Some(problem)) => advice.push(format!(
                    "{problem}: on a machine with an NVIDIA GPU install its driver, {} or newer; without a GPU nothing is to do",
                    self.kernels
                        .as_ref()
                        .map_or("580".into(), |k| oldest_driver(k.toolkit))
                )),
                (None, None) => {}
            }
        }
        if self.kernels.is_none() && (!self.gpus.is_empty() || self.driver.is_some()) {
            let nvcc = match &self.nvcc {
                Some(path) => format!("nvcc is {path}"),
                None => "it needs nvcc, to build only: `python3 -m venv .venv && .venv/bin/pip install \"nvidia-cuda-nvcc==13.0.*\" \"nvidia-cuda-crt==13.0.*\" \"nvidia-nvvm==13.0.*\" \"nvidia-cuda-runtime==13.0.*\" \"nvidia-cuda-cccl==13.0.*\"`".into(),
            };
            advice.push(format!(
                "this build has no CUDA kernels: `cargo build --release --features cuda` to use the GPU; {nvcc}"
            ));
        }
        advice
    }
}

/// A compiler where `kernels/build.rs` looks for one.
pub fn nvcc() -> Option<String> {
    let path = |name: &str| std::env::var_os(name).map(std::path::PathBuf::from);
    let mut places: Vec<_> = path("NVCC").into_iter().collect();
    places.extend(path("CUDA_HOME").map(|d| d.join("bin/nvcc")));
    if let Some(path) = std::env::var_os("PATH") {
        places.extend(std::env::split_paths(&path).map(|d| d.join("nvcc")));
    }
    places.push("/usr/local/cuda/bin/nvcc".into());
    let environments = path("VIRTUAL_ENV").into_iter().chain([".venv".into()]);
    for environment in environments {
        let pythons = std::fs::read_dir(environment.join("lib"));
        let pythons = pythons.into_iter().flatten().flatten();
        places.extend(pythons.map(|p| p.path().join("site-packages/nvidia/cu13/bin/nvcc")));
    }
    let found = places.into_iter().find(|p| p.is_file())?;
    Some(found.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(architectures: &[&str]) -> Kernels {
        Kernels {
            toolkit: (13, 0),
            architectures: architectures.iter().map(|a| a.to_string()).collect(),
        }
    }

    #[test]
    fn a_gpu_gets_its_own_machine_code_an_older_minor_versions_or_ptx() {
        let all = build(&["sm_80", "sm_89", "sm_90a", "sm_120", "compute_80"]);
        let gets = |capability, hopper| all.for_gpu(capability, (13, 0), hopper).unwrap();
        assert_eq!(gets((8, 0), false), "portable (mma.sync), sm_80");
        assert_eq!(gets((8, 6), false), "portable (mma.sync), sm_80");
        assert_eq!(gets((9, 0), true), "Hopper (TMA and wgmma), sm_90a");
        assert_eq!(gets((12, 1), false), "portable (mma.sync), sm_120");
        assert!(gets((10, 0), false).contains("by the driver from compute_80"));
    }

    #[test]
    fn what_cannot_run_is_a_sentence_with_a_way_out() {
        let refusal = |architectures: &[&str], capability, driver| {
            let refused = build(architectures).for_gpu(capability, driver, false);
            refused.unwrap_err()
        };
        let old = refusal(&["sm_80"], (7, 5), (13, 0));
        assert!(old.contains("7.5 is too old") && old.contains("--device cpu"));
        let driver = refusal(&["sm_80"], (8, 0), (12, 4));
        assert!(driver.contains("CUDA 12.4") && driver.contains("driver 580 or newer"));
        let narrow = refusal(&["sm_90a"], (8, 0), (13, 0));
        assert!(narrow.contains("MEDFT_CUDA_ARCHS=sm_80"));
    }

    fn gpu() -> Gpu {
        Gpu {
            name: "NVIDIA H100 80GB HBM3".into(),
            capability: Some((9, 0)),
            memory: Some(Memory {
                free: 70 << 30,
                total: 80 << 30,
            }),
            kernels: Some("Hopper (TMA and wgmma), sm_90a".into()),
            problem: None,
        }
    }

    #[test]
    fn a_gpu_that_works_is_described_and_nothing_is_to_do() {
        let works = Graphics {
            driver: Some("580.65.06".into()),
            driver_cuda: Some((13, 0)),
            kernels: Some(build(&["sm_90a"])),
            gpus: vec![gpu()],
            ..Graphics::default()
        };
        assert!(works.usable());
        assert_eq!(
            works.report(),
            [
                "gpu 0      NVIDIA H100 80GB HBM3, compute capability 9.0, 70.0 GiB free of 80.0 GiB; kernels: Hopper (TMA and wgmma), sm_90a",
                "driver     NVIDIA 580.65.06, CUDA 13.0",
                "kernels    in this build, by CUDA 13.0: sm_90a",
            ]
        );
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_do() {
        let advice = |graphics: Graphics| graphics.advice().join("\n");
        let without = Graphics {
            driver: Some("580.65.06".into()),
            gpus: vec![Gpu {
                kernels: None,
                ..gpu()
            }],
            ..Graphics::default()
        };
        let said = advice(without.clone());
        assert!(said.contains("--features cuda") && said.contains("nvidia-cuda-nvcc"));
        let nvcc = Some("/usr/local/cuda/bin/nvcc".into());
        let said = advice(Graphics { nvcc, ..without });
        assert!(said.ends_with("nvcc is /usr/local/cuda/bin/nvcc"), "{said}");
        let blind = Graphics {
            driver: Some("580.65.06".into()),
            kernels: Some(build(&["sm_90a"])),
            ..Graphics::default()
        };
        assert!(advice(blind).contains("--gpus all"));
        let bare = Graphics {
            kernels: Some(build(&["sm_90a"])),
            problem: Some("no NVIDIA driver is installed".into()),
            ..Graphics::default()
        };
        assert!(advice(bare).contains("install its driver, 580 or newer"));
        assert_eq!(advice(Graphics::default()), "");
    }
}
