//! What operators do from the command line while the gateway runs: each command is one request to its administration.

mod ask;
mod show;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use crate::cli::{Exit, complain, say};

use self::ask::{Asked, Gateway, Trouble};

/// Where the running gateway is, and how its answers are shown.
#[derive(Args, Debug)]
pub(crate) struct Where {
    /// The configuration file, which says where the gateway is administrated
    #[arg(short, long, value_name = "PATH", default_value = "/etc/foregate/foregate.toml")]
    config: PathBuf,
    /// Where the gateway is administrated: unix:/run/foregate/admin.sock, or an address and a port
    #[arg(long, value_name = "PLACE")]
    admin: Option<String>,
    /// A file with the token, for an address
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    /// Print what the gateway answers, as JSON
    #[arg(long)]
    json: bool,
}

/// `pool/backend`, as `foregate pools` shows them.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// The backend, as POOL/BACKEND
    #[arg(value_name = "POOL/BACKEND")]
    target: String,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell how the running gateway is, and where it differs from its file
    Status {
        #[command(flatten)]
        at: Where,
    },
    /// Tell what the running gateway serves: sites and their routes
    Sites {
        #[command(flatten)]
        at: Where,
    },
    /// Tell how every backend is, and why
    Pools {
        /// Only this pool
        pool: Option<String>,
        #[command(flatten)]
        at: Where,
    },
    /// Tell which certificates are shown, and for which hosts
    #[command(visible_alias = "certs")]
    Certificates {
        #[command(flatten)]
        at: Where,
    },
    /// Tell how many clients are connected
    Connections {
        #[command(flatten)]
        at: Where,
    },
    /// Tell what each worker is doing
    Workers {
        #[command(flatten)]
        at: Where,
    },
    /// Print the configuration that is served
    Config {
        #[command(flatten)]
        at: Where,
    },
    /// Give a backend no new work; what it has begun goes on
    Drain(Target),
    /// Give a backend nothing at all
    Maintenance(Target),
    /// Give a backend work again
    Undrain(Target),
    /// Give a backend another weight than the file says
    Weight {
        /// The backend, as POOL/BACKEND
        #[arg(value_name = "POOL/BACKEND")]
        target: String,
        /// The weight, or `file` for the one of the file
        weight: String,
        #[command(flatten)]
        at: Where,
    },
    /// Have the running gateway follow its configuration file
    Reload {
        /// Also if this configuration was rolled back
        #[arg(long)]
        force: bool,
        /// Go back unless `foregate confirm` comes within this time, such as 60s
        #[arg(long, value_name = "TIME")]
        confirm: Option<String>,
        /// Go back sooner if clearly more answers fail than before, or a pool loses its last usable backend
        #[arg(long, requires = "confirm")]
        guard: bool,
        #[command(flatten)]
        at: Where,
    },
    /// Keep what `reload --confirm` serves
    Confirm {
        #[command(flatten)]
        at: Where,
    },
    /// Serve an earlier configuration again; the file is not changed
    Rollback {
        /// Its number in the history; without it the one before
        number: Option<u64>,
        #[command(flatten)]
        at: Where,
    },
    /// Have the program, as its file is now, take over without a pause; the old process finishes what it has begun
    Upgrade {
        #[command(flatten)]
        at: Where,
    },
    /// Tell which configurations were served, the newest first
    History {
        #[command(flatten)]
        at: Where,
    },
    /// Tell what is different between two configurations; without numbers, between what is served and the file
    Diff {
        /// A number in the history; without it what is served
        from: Option<u64>,
        /// A number in the history; without it the file
        to: Option<u64>,
        #[command(flatten)]
        at: Where,
    },
}

/// Asks, and shows the answer.
pub(crate) fn main(command: Command) -> Exit {
    match run(command) {
        Ok(()) => Exit::Done,
        Err(trouble) => {
            complain(format_args!("foregate: {}", trouble.sentence));
            trouble.exit
        }
    }
}

fn run(command: Command) -> Result<(), Trouble> {
    match command {
        Command::Status { at } => get(&at, "/status", show::status),
        Command::Sites { at } => get(&at, "/sites", show::sites),
        Command::Pools { pool: None, at } => get(&at, "/pools", show::pools),
        Command::Pools { pool: Some(pool), at } => {
            get(&at, &format!("/pools/{}", ask::part(&pool)), show::pool)
        }
        Command::Certificates { at } => get(&at, "/certificates", show::certificates),
        Command::Connections { at } => get(&at, "/connections", show::connections),
        Command::Workers { at } => get(&at, "/workers", show::workers),
        Command::Config { at } => get(&at, "/config", show::config),
        Command::Drain(Target { target, at }) => instruct(&at, &target, "drain", &Value::Null),
        Command::Maintenance(Target { target, at }) => instruct(&at, &target, "maintenance", &Value::Null),
        Command::Undrain(Target { target, at }) => instruct(&at, &target, "undrain", &Value::Null),
        Command::Weight { target, weight, at } => {
            let weight = match weight.as_str() {
                "file" => None,
                number => Some(number.parse::<u32>().map_err(|_| {
                    Trouble::usage(format!(
                        "\"{number}\" is no weight; write a number from 0 upwards, or `file`"
                    ))
                })?),
            };
            instruct(&at, &target, "weight", &json!({ "weight": weight }))
        }
        Command::Reload { force, confirm, guard, at } => {
            let body = json!({ "force": force, "confirm": confirm, "guard": guard });
            post(&at, "/reload", &body, show::change)
        }
        Command::Confirm { at } => post(&at, "/confirm", &Value::Null, show::done),
        Command::Rollback { number, at } => post(&at, "/rollback", &json!({ "to": number }), show::change),
        Command::Upgrade { at } => post(&at, "/upgrade", &Value::Null, show::done),
        Command::History { at } => get(&at, "/history", show::history),
        Command::Diff { from, to, at } => {
            let number = |name: &str, number: Option<u64>| number.map(|number| format!("{name}={number}"));
            let query: Vec<String> = number("from", from).into_iter().chain(number("to", to)).collect();
            get(&at, &format!("/diff?{}", query.join("&")), show::diff)
        }
    }
}

/// What makes an answer readable.
type Show = fn(&Value) -> String;

fn get(at: &Where, path: &str, show: Show) -> Result<(), Trouble> {
    let answer = Gateway::find(at)?.ask(Asked { method: Method::GET, path, body: String::new() })?;
    print(at, &answer, show);
    Ok(())
}

fn post(at: &Where, path: &str, body: &Value, show: Show) -> Result<(), Trouble> {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = Gateway::find(at)?.ask(Asked { method: Method::POST, path, body })?;
    print(at, &answer, show);
    Ok(())
}

/// Either name may hold a slash, so the gateway is asked what there is.
fn instruct(at: &Where, target: &str, action: &str, body: &Value) -> Result<(), Trouble> {
    let pools = Gateway::find(at)?.ask(Asked { method: Method::GET, path: "/pools", body: String::new() })?;
    let mut named = show::backends(&pools);
    if matches!(action, "undrain" | "weight") {
        // What was said of one that has gone can be taken back.
        let status =
            Gateway::find(at)?.ask(Asked { method: Method::GET, path: "/status", body: String::new() })?;
        named.extend(show::overridden(&status));
    }
    let Some((pool, backend)) = named.iter().find(|(pool, backend)| format!("{pool}/{backend}") == target)
    else {
        let names: Vec<String> = named.iter().map(|(pool, backend)| format!("{pool}/{backend}")).collect();
        return Err(Trouble::usage(format!(
            "there is no backend {target}; there are:\n  {}",
            names.join("\n  ")
        )));
    };
    let path = format!("/pools/{}/backends/{}/{action}", ask::part(pool), ask::part(backend));
    post(at, &path, body, show::instructed)
}

fn print(at: &Where, answer: &Value, show: Show) {
    if at.json {
        say(format_args!("{answer:#}"));
    } else {
        say(show(answer).trim_end());
    }
}
