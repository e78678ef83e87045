//! What this machine has: processor, memory, disk, GPU driver, hub token.
//!
//! Holds facts read from the system, for `doctor` and for a run's `environment.json`. It refuses to guess: what cannot be read is
//! `None`. Linux is read from /proc; elsewhere fewer facts are known.

pub mod gpu;

use crate::backend::facts::Memory;
use crate::data::hub::Hub;
#[cfg(not(feature = "cuda"))]
use gpu::Gpu;
use gpu::Graphics;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

/// Facts about the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Version of this program.
    pub engine: String,
    /// Operating system and architecture.
    pub system: String,
    /// Processor model.
    pub cpu: Option<String>,
    /// Cores that this process may use.
    pub cores: usize,
    /// The widest vector instructions that the CPU backend uses here.
    pub vectors: String,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory that are free or can be freed.
    pub memory_free: Option<u64>,
    /// Driver, GPUs and kernels.
    pub graphics: Graphics,
    /// Folder of downloaded models and data.
    pub hub_cache: PathBuf,
    /// Whether there is a hub token.
    pub hub_token: bool,
}

impl Machine {
    /// Looks.
    pub fn inspect() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let memory = memory();
        let cpuinfo = read("/proc/cpuinfo");
        let cpu = cpuinfo.as_ref().and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_string())
        });
        let hub = Hub::from_env();
        Machine {
            engine: version(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            vectors: vectors().to_string(),
            memory: memory.map(|m| m.total),
            memory_free: memory.map(|m| m.free),
            graphics: graphics(),
            hub_cache: hub.cache().to_path_buf(),
            hub_token: hub.has_token(),
        }
    }

    /// Lines for people: each fact, and what to do where something is missing.
    pub fn report(&self) -> Vec<String> {
        let gib = |bytes: Option<u64>| {
            bytes.map_or("unknown".to_string(), |b| {
                format!("{:.1} GiB", b as f64 / 1_073_741_824.0)
            })
        };
        let token = if self.hub_token {
            "found"
        } else {
            "none: gated models (Llama) need one; make it at https://huggingface.co/settings/tokens and set HF_TOKEN"
        };
        let mut lines = vec![
            format!("engine     medft-engine {} on {}", self.engine, self.system),
            format!(
                "cpu        {}, {} cores, {}",
                self.cpu.as_deref().unwrap_or("unknown"),
                self.cores,
                self.vectors
            ),
            format!(
                "memory     {} free of {}",
                gib(self.memory_free),
                gib(self.memory)
            ),
        ];
        lines.extend(self.graphics.report());
        lines.extend([
            format!("hub cache  {}", self.hub_cache.display()),
            format!("hub token  {token}"),
        ]);
        lines
    }
}

/// Version of this program, with its commit where that is known.
fn version() -> String {
    let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("MEDFT_COMMIT"));
    if commit.is_empty() {
        version.to_string()
    } else {
        format!("{version} ({commit})")
    }
}

/// The vector instructions that the CPU backend picks here.
fn vectors() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "AVX2 with FMA";
        }
        "SSE2 only: expect a quarter of the usual speed"
    }
    #[cfg(not(target_arch = "x86_64"))]
    if cfg!(target_arch = "aarch64") {
        "NEON"
    } else {
        "no vector instructions known"
    }
}

/// The computer's memory: what there is, and what is free or can be freed.
pub fn memory() -> Option<Memory> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    };
    Some(Memory {
        free: field("MemAvailable:")?,
        total: field("MemTotal:")?,
    })
}

/// Driver and GPUs, looked for once: each GPU has to be opened, which takes its time.
fn graphics() -> Graphics {
    static FOUND: OnceLock<Graphics> = OnceLock::new();
    FOUND.get_or_init(look_for_graphics).clone()
}

/// Driver and GPUs: as CUDA shows them, or, in a build without kernels, as the system lists them.
fn look_for_graphics() -> Graphics {
    #[cfg(feature = "cuda")]
    let found = crate::backend::cuda::facts::graphics();
    #[cfg(not(feature = "cuda"))]
    let found = Graphics {
        gpus: gpus().into_iter().map(listed).collect(),
        ..Graphics::default()
    };
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    Graphics {
        driver: driver.and_then(|text| {
            text.split_whitespace()
                .find(|w| w.contains('.') && w.starts_with(|c: char| c.is_ascii_digit()))
                .map(str::to_string)
        }),
        nvcc: gpu::nvcc(),
        ..found
    }
}

/// A GPU of which only the name is known.
#[cfg(not(feature = "cuda"))]
fn listed(name: String) -> Gpu {
    Gpu {
        name,
        capability: None,
        memory: None,
        kernels: None,
        problem: None,
    }
}

/// Names of NVIDIA GPUs, as the kernel module lists them.
#[cfg(not(feature = "cuda"))]
fn gpus() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc/driver/nvidia/gpus") else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|e| std::fs::read_to_string(e.path().join("information")).ok())
        .filter_map(|text| {
            text.lines()
                .find_map(|l| l.strip_prefix("Model:").map(|m| m.trim().to_string()))
        })
        .collect();
    names.sort();
    names
}

/// Forgets the process's peak of memory, where the system can (Linux).
pub fn reset_peak_memory() {
    // Without it the peak is that of the whole process: still true, only larger.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Most bytes of memory that this process held since [`reset_peak_memory`].
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The time now, in UTC, as `2026-11-23T21:15:00Z`.
pub fn utc_now() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let (days, seconds) = (now / 86_400, now % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day of a number of days after 1970-01-01 (H. Hinnant, chrono-compatible low-level date algorithms).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::civil;

    #[test]
    fn days_become_dates() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(11_016), (2000, 2, 29));
        assert_eq!(civil(20_780), (2026, 11, 23));
    }
}
