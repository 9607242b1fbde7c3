//! The command line: what can be asked of the program, and all that it says outside its log.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Loaded};
use crate::control::{Origin, Watch};
use crate::systemd::Given;
use crate::{agent, demo, log, operate, proxy, run, state, upgrade};

/// How the program ended. The numbers are part of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It did what was asked and, having served, let everything that ran come to its end.
    Done = 0,
    /// It could not start, or was told to end before the work was finished.
    Failed = 1,
    /// The configuration or the command line is wrong; nothing was started. clap uses the same number.
    Invalid = 2,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done; after SIGTERM or SIGINT: everything that ran was finished, or the drain time was over
  1  could not start (port taken, no permission, ...), or a second signal cut the drain short
  2  the configuration or the command line is wrong; every error is on standard error";

#[derive(Debug, Parser)]
#[command(
    name = "foregate",
    version,
    about = "Many VMs behind one IP address: a gateway for HTTP/1.1, HTTP/2 and HTTP/3",
    long_about = "Foregate puts many VMs behind one IP address. It accepts HTTP/1.1, HTTP/2 and HTTP/3 \
        there, decides by host name and path which VM answers, and hands the request over.\n\n\
        To see it work on this machine: foregate demo\n\
        To put it in front of a program that listens on port 3000: foregate proxy --to 3000\n\
        To run it as a service: foregate run",
    after_help = "`foregate help COMMAND` tells more about a command, with an example.",
    after_long_help = EXIT_CODES,
    disable_help_subcommand = false
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve what a configuration file says, until SIGTERM or SIGINT
    #[command(
        long_about = "Serves what the configuration file says, until SIGTERM or SIGINT.\n\n\
            Writes one line per listener to standard output once it listens, and its log to standard \
            error (RUST_LOG=debug tells more, RUST_LOG=warn less).\n\n\
            On SIGHUP it reads the file again and follows it; what has not changed goes on undisturbed, and a \
            file with mistakes changes nothing. `foregate reload` does the same and tells what came of it.\n\n\
            On the first SIGTERM or SIGINT it accepts nothing new, finishes what runs for at most \
            `server.timeouts.drain` (30s unless configured) and exits with 0. A second signal ends it \
            at once.",
        after_long_help = format!(
            "Example, the smallest useful file (as /etc/foregate/foregate.toml):\n\n  \
             [tls]\n  self_signed = true\n  [sites.\"app.example.com\"]\n  pool = \"192.168.1.10:80\"\n\n{EXIT_CODES}"
        )
    )]
    Run(Run),
    /// Tell everything that is wrong with a configuration file, and start nothing
    #[command(
        long_about = "Reads the configuration file as `run` would, certificates and regular expressions \
            included, but binds no port and talks to no VM.\n\n\
            Prints `ok` if `run` would take it. Otherwise every error is told at once, each with its \
            file, line and column, and what to write instead. Warnings do not fail the check.",
        after_long_help = format!("Example:\n\n  foregate check --config ./foregate.toml && systemctl restart foregate\n\n{EXIT_CODES}")
    )]
    Check(ConfigFile),
    /// Serve one or several backends without a configuration file
    #[command(
        long_about = "The same gateway from flags alone, with a self-signed certificate: for development \
            and for a quick look. Requests for every host go to the backends in turn.",
        after_long_help = format!(
            "Examples:\n\n  foregate proxy --to 3000\n  \
             foregate proxy --to 10.0.0.5:80 --to 10.0.0.6:80 --host app.test --listen 127.0.0.1\n  \
             foregate proxy --to h2c://127.0.0.1:50051 --http off --https 443\n\n{EXIT_CODES}"
        )
    )]
    Proxy(proxy::Flags),
    /// Try it out: three small VMs in this process, and the gateway in front of them
    #[command(
        long_about = "Starts three small web servers in this process that stand for VMs, and the gateway \
            in front of them on 127.0.0.1 with a self-signed certificate. Prints what to open in a \
            browser and a curl line for each HTTP version. Nothing is written to disk, and nothing can \
            be reached from other machines. Ctrl-C ends it.",
        after_long_help = EXIT_CODES
    )]
    Demo(demo::Flags),
    /// Run this within a VM: says how busy it is, to a gateway that asks
    #[command(
        long_about = "Listens on a port and says one line to whoever connects: how busy the processors of \
            this machine are, and whether it wants work. A pool with `agent = { port = 9707 }` asks each of \
            its VMs, gives less to one that is too busy, and nothing new to one that drains. The line is the \
            one of HAProxy's agent-check.",
        after_long_help = format!(
            "Example, in the VM, before an upgrade and after it:\n\n  \
             echo 'drain # upgrade' > /run/foregate-agent/state\n  \
             rm /run/foregate-agent/state\n\n{EXIT_CODES}"
        )
    )]
    Agent(agent::Flags),
    #[command(flatten)]
    Operate(operate::Command),
}

#[derive(Args, Debug)]
struct Run {
    #[command(flatten)]
    file: ConfigFile,
    /// Follow the configuration file, and those it includes, whenever they change
    #[arg(long)]
    watch: bool,
}

#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration file
    #[arg(short, long, value_name = "PATH", default_value = "/etc/foregate/foregate.toml")]
    config: PathBuf,
}

/// Does what the command line asks.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    upgrade::remember_program();
    // The only provider in the tree; whoever asks rustls for "the default" gets it. It cannot be
    // installed yet, and if it were it would be the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match cli.command {
        Command::Run(flags) => serve_file(&flags),
        Command::Check(file) => check(&file.config),
        Command::Proxy(flags) => proxy::main(&flags),
        Command::Demo(flags) => demo::main(&flags),
        Command::Agent(flags) => agent::main(&flags),
        Command::Operate(command) => operate::main(command),
    }
    .into()
}

fn serve_file(flags: &Run) -> Exit {
    // Whatever folder the process is in later, this is the file.
    let path = std::path::absolute(&flags.file.config).unwrap_or_else(|_| flags.file.config.clone());
    let given = match Given::take() {
        Ok(given) => given,
        Err(error) => {
            return run::failed(format_args!(
                "the sockets that LISTEN_FDS speaks of cannot be taken: {error}; correct what starts this program"
            ));
        }
    };
    let inherited = match upgrade::inherit() {
        Ok(inherited) => inherited,
        Err(reason) => return run::failed(reason),
    };
    if let Some(digits) = inherited.as_ref().and_then(|inherited| inherited.testament.sticky.as_ref()) {
        state::inherit_sticky_secret(digits);
    }
    let watch = flags.watch.then(|| match &inherited {
        Some(inherited) => Watch::go_on(path.clone(), inherited.testament.watched.as_deref()),
        None => Watch::begin(path.clone()),
    });
    let loaded = match &inherited {
        // Another program, and nothing else: what is served stays, whatever the file says by now.
        Some(inherited) => told(config::load_files(&inherited.testament.files(), None)),
        None => load(&path),
    };
    match (loaded, inherited) {
        (Ok(loaded), inherited) => {
            log::start();
            run::serve(loaded, Origin::File(path), watch, inherited, given, |_| {})
        }
        (Err(exit), inherited) => {
            if let Some(inherited) = inherited {
                inherited.refuse("it cannot read the configuration that is served; its log says why");
            }
            exit
        }
    }
}

fn check(path: &Path) -> Exit {
    match load(path) {
        Ok(_) => {
            say("ok");
            Exit::Done
        }
        Err(exit) => exit,
    }
}

fn load(path: &Path) -> Result<Loaded, Exit> {
    let loaded = told(config::load(path, None));
    if loaded.is_err() && !path.exists() {
        complain(
            "\nWrite one (`foregate help run` shows the smallest), or name another one with --config. \
             `foregate demo` and `foregate proxy` need none.",
        );
    }
    loaded
}

/// A configuration made by the program itself, from flags; `name` stands for a file in its errors.
pub(crate) fn load_made(name: &str, text: &str) -> Result<Loaded, Exit> {
    told(config::load_str(name, text, Path::new("."), None))
}

/// Tells warnings, or all errors.
fn told(result: Result<Loaded, config::Report>) -> Result<Loaded, Exit> {
    match result {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                complain(format_args!("{warning}\n"));
            }
            Ok(loaded)
        }
        Err(report) => {
            complain(report);
            Err(Exit::Invalid)
        }
    }
}

/// A line on standard output. That nobody reads it is no reason to stop serving.
pub(crate) fn say(line: impl fmt::Display) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A line on standard error, for what is told before there is a log.
pub(crate) fn complain(line: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_explains_itself() {
        let mut cli = Cli::command();
        cli.build();
        for command in cli.get_subcommands_mut().filter(|command| command.get_name() != "help") {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            assert!(
                help.contains("Exit codes:") || command.get_arguments().any(|one| one.get_id() == "admin"),
                "{name}: {help}"
            );
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{name} {argument}");
            }
        }
    }

    #[test]
    fn the_configuration_has_one_default_place() {
        for line in ["foregate run", "foregate check"] {
            let (Command::Run(Run { file, .. }) | Command::Check(file)) = parse(line).unwrap() else {
                panic!("{line}")
            };
            assert_eq!(file.config, Path::new("/etc/foregate/foregate.toml"));
        }
        let Command::Run(run) = parse("foregate run --config a.toml").unwrap() else { panic!() };
        assert_eq!(run.file.config, Path::new("a.toml"));
    }

    #[test]
    fn a_wrong_command_line_ends_with_the_code_of_a_wrong_configuration() {
        for line in [
            "foregate",
            "foregate serve",
            "foregate run --port 1",
            "foregate proxy",
            "foregate demo --http x",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), i32::from(Exit::Invalid as u8), "{line}");
        }
        for line in ["foregate --help", "foregate --version", "foregate demo --help"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 0, "{line}");
        }
    }
}
