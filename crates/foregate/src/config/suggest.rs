//! "Did you mean": the nearest of the words that would have been right.

/// The candidate that a slip of the keyboard separates from `word`, if there is one.
pub(super) fn nearest<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let wanted = plain(word);
    // One slip in a short word, two in a longer one, three in a long one: more is a different word.
    let tolerance = match wanted.chars().count() {
        0..=2 => return None,
        3..=5 => 1,
        6..=10 => 2,
        _ => 3,
    };
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&wanted, &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= tolerance)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "a", "a or b", "a, b or c".
pub(super) fn alternatives(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// "`a`, `b`"
pub(super) fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised() {
        let keys = ["addresses", "http", "https", "backlog", "redirect_to_https", "hosts", "pool"];
        for (word, meant) in [
            ("adresses", Some("addresses")),
            ("address", Some("addresses")),
            ("backlgo", Some("backlog")),
            ("redirect-to-https", Some("redirect_to_https")),
            ("host", Some("hosts")),
            ("Pool", Some("pool")),
            ("poool", Some("pool")),
            ("upstream", None),
            ("x", None),
        ] {
            assert_eq!(nearest(word, keys), meant, "{word}");
        }
    }
}
