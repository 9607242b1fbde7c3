//! The program: command line, configuration and the control thread of the gateway.

#[cfg(target_os = "linux")]
mod admin;
#[cfg(target_os = "linux")]
mod agent;
#[cfg(target_os = "linux")]
mod blueprint;
#[cfg(target_os = "linux")]
mod cli;
#[cfg(target_os = "linux")]
mod config;
#[cfg(target_os = "linux")]
mod control;
#[cfg(target_os = "linux")]
mod debugging;
#[cfg(target_os = "linux")]
mod demo;
#[cfg(target_os = "linux")]
mod log;
#[cfg(target_os = "linux")]
mod operate;
#[cfg(target_os = "linux")]
mod pair;
#[cfg(target_os = "linux")]
mod proxy;
#[cfg(target_os = "linux")]
mod run;
#[cfg(target_os = "linux")]
mod self_signed;
#[cfg(target_os = "linux")]
mod state;
#[cfg(target_os = "linux")]
mod systemd;
#[cfg(target_os = "linux")]
mod upgrade;

/// Of less CPU time than the system's, and it gives memory back when a crowd has left.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    cli::main()
}

/// Elsewhere the dependencies are not even compiled, so that this is what a stranger gets to see.
#[cfg(not(target_os = "linux"))]
#[allow(clippy::print_stderr, reason = "there is no other way to say it")]
fn main() -> std::process::ExitCode {
    eprintln!(
        "foregate runs on Linux only: it shares its ports between threads and steers QUIC packets in ways \
         that this system does not know. Run it on a Linux machine, in a VM or in a container."
    );
    std::process::ExitCode::FAILURE
}
