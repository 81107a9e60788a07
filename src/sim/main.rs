//! The simulated world's command; see docs/testing.md.

fn main() -> std::process::ExitCode {
    aioraft::sim::cli::main()
}
