//! The program's log: one line per event on standard error.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// Starts the log. `RUST_LOG` chooses what is written; without it that is `info` and above.
pub(crate) fn start() {
    let builder = || EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    let (filter, complaint) = match builder().try_from_env() {
        Ok(filter) => (filter, None),
        // Not set at all is no mistake.
        Err(_) if std::env::var_os("RUST_LOG").is_none() => (builder().parse_lossy(""), None),
        Err(error) => (builder().parse_lossy(""), Some(error)),
    };
    // A colour code in a file or a journal is noise; https://no-color.org says how a terminal opts out.
    let colours =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .init();
    if let Some(error) = complaint {
        tracing::warn!("RUST_LOG cannot be used ({error}); logging at info");
    }
}
