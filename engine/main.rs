//! The `medft-engine` program.

fn main() -> std::process::ExitCode {
    medft_engine::cli::main()
}
