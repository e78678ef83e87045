//! Names the commit that the program was built from, for reports; a source archive without git has none.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=.git/HEAD");
    println!("cargo:rerun-if-changed=.git/refs/heads");
    let output = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output();
    let commit = output
        .ok()
        .filter(|o| o.status.success())
        .and_then(|o| String::from_utf8(o.stdout).ok());
    println!(
        "cargo:rustc-env=MEDFT_COMMIT={}",
        commit.unwrap_or_default().trim()
    );
}
