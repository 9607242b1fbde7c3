//! `[tls]`: the certificates of the gateway and the versions of TLS it speaks.

use std::path::PathBuf;

use foregate_routing::TlsVersion;

use super::acme::Acme;
use super::decode::{Table, Value};
use super::diagnostic::Problem;
use super::source::{Place, Placed};

/// `[tls]` of the main file, and `[[tls.certificates]]` of all files.
#[derive(Debug)]
pub(super) struct Tls {
    pub(super) min_version: TlsVersion,
    pub(super) self_signed: bool,
    /// A host whose certificate clients with no or an unknown SNI are shown.
    pub(super) default_certificate: Option<Placed<String>>,
    pub(super) certificates: Vec<CertificateFiles>,
    pub(super) acme: Option<Acme>,
    /// Whether all of it could be read: else a host may lack its certificate only because of that.
    pub(super) sound: bool,
}

impl Default for Tls {
    fn default() -> Tls {
        Tls {
            min_version: TlsVersion::V1_3,
            self_signed: false,
            default_certificate: None,
            certificates: Vec::new(),
            acme: None,
            sound: true,
        }
    }
}

/// A chain and its key, not opened yet.
#[derive(Clone, Debug)]
pub(super) struct CertificateFiles {
    pub(super) cert: Placed<PathBuf>,
    pub(super) key: Placed<PathBuf>,
}

impl CertificateFiles {
    /// Where to point at when this file is at fault.
    pub(super) fn place_of(&self, path: &std::path::Path) -> Place {
        if path == self.key.value { self.key.place } else { self.cert.place }
    }
}

impl Tls {
    pub(super) fn read(table: Table<'_>) -> Tls {
        let mut tls = Tls::default();
        let (problems, mark) = (table.problems(), table.problems().count());
        if let Some(version) = table.read("min_version", min_version) {
            tls.min_version = version;
        }
        if let Some(self_signed) = table.read("self_signed", Value::bool) {
            tls.self_signed = self_signed;
        }
        tls.default_certificate = table.read("default_certificate", Value::string);
        tls.certificates = read_certificates(&table);
        tls.acme = table.table("acme").map(Acme::read);
        table.finish();
        tls.sound = problems.count() == mark;
        tls
    }

    /// Adds the part of `[tls]` that an included file may hold.
    pub(super) fn read_included(&mut self, table: Table<'_>) {
        let (problems, mark) = (table.problems(), table.problems().count());
        self.certificates.extend(read_certificates(&table));
        table.misplaced(
            &["min_version", "self_signed", "default_certificate", "acme"],
            "an included file holds only `certificates` of [tls]; this belongs into the main file",
        );
        table.finish();
        self.sound &= problems.count() == mark;
    }
}

pub(super) fn min_version(value: &Value<'_>) -> Option<TlsVersion> {
    value.one_of(&[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)])
}

fn read_certificates(table: &Table<'_>) -> Vec<CertificateFiles> {
    let Some(value) = table.get("certificates") else { return Vec::new() };
    value.each(|one| {
        let table = one.table_or("a table with `cert` and `key`")?;
        let cert = table.read("cert", Value::path);
        let key = table.read("key", Value::path);
        for (name, missing) in [("cert", table.get("cert").is_none()), ("key", table.get("key").is_none())] {
            if missing && !table.misspells(&[name]) {
                table.problem(Problem::absence(table.place(), format!("`{}` needs `{name}`", table.name())));
            }
        }
        table.finish();
        Some(CertificateFiles { cert: cert?, key: key? })
    })
}
