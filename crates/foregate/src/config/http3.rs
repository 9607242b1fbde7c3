//! `[http3]`: HTTP/3 and how it is advertised.

use foregate_edge::settings::{AddressValidation, AltSvc, Congestion, Http3};

use super::decode::{Table, Value};

pub(super) fn read(table: Table<'_>) -> Http3 {
    let mut http3 = Http3::default();
    if let Some(enabled) = table.read("enabled", Value::bool) {
        http3.enabled = enabled;
    }
    let words = [("auto", AltSvc::Auto), ("always", AltSvc::Always), ("never", AltSvc::Never)];
    if let Some(word) = table.read("alt_svc", |value| value.one_of(&words)) {
        http3.alt_svc = word;
    }
    if let Some(age) = table.read("alt_svc_max_age", Value::duration_or_zero) {
        http3.alt_svc_max_age = age;
    }
    http3.alt_svc_port =
        table.read("alt_svc_port", |value| value.number(1, 65_535, "a port from 1 to 65535"));
    table.later("alt_svc_probe", |value| value.is_word("off"));
    let validations = [
        ("auto", AddressValidation::Auto),
        ("always", AddressValidation::Always),
        ("never", AddressValidation::Never),
    ];
    if let Some(validation) = table.read("address_validation", |value| value.one_of(&validations)) {
        http3.address_validation = validation;
    }
    let controllers = [("cubic", Congestion::Cubic), ("bbr", Congestion::Bbr)];
    if let Some(congestion) = table.read("congestion", |value| value.one_of(&controllers)) {
        http3.congestion = congestion;
    }
    table.finish();
    http3
}
