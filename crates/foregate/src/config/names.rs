//! Sections whose keys are names: `[sites.NAME]`, `[pools.NAME]`.

use super::decode::{Table, Value};
use super::diagnostic::Problem;
use super::source::Placed;

/// A table under a name, and where the name stands.
pub(super) struct Named<'a> {
    pub(super) name: Placed<String>,
    pub(super) table: Table<'a>,
}

/// Every named table of a section, in the order of the file. `own` are the keys of one such table that hold
/// tables themselves: any other table inside is the rest of a name with dots that nobody quoted.
pub(super) fn read<'a>(section: &Table<'a>, own: &[&str]) -> Vec<Named<'a>> {
    let mut found = Vec::new();
    for (key, value) in section.entries() {
        let Some(table) = value.table() else { continue };
        let nested = unquoted(key.value, &table, own);
        let mut others = 0;
        for (inner, inside) in table.entries() {
            if inside.is_table() && !own.contains(&inner.value) {
                table.allow(inner.value);
            } else {
                others += 1;
            }
        }
        for (name, value) in &nested {
            let section = section.name();
            let problem = Problem::error(
                value.place(),
                format!("the dots in `{section}.{name}` make it a table in a table"),
            );
            value.problem(problem.help(format!("quote the name: [{section}.\"{name}\"]")));
        }
        // Its content is still worth a look, under the name that was meant.
        if nested.is_empty() || others > 0 {
            found.push(Named { name: Placed::new(key.value.to_owned(), key.place), table });
        }
        found.extend(nested.into_iter().filter_map(|(name, value)| {
            let place = value.place();
            Some(Named { name: Placed::new(name, place), table: value.table()? })
        }));
    }
    found
}

fn unquoted<'a>(name: &str, table: &Table<'a>, own: &[&str]) -> Vec<(String, Value<'a>)> {
    let mut found = Vec::new();
    for (key, value) in table.entries() {
        if !value.is_table() || own.contains(&key.value) {
            continue;
        }
        let Some(table) = value.table() else { continue };
        let name = format!("{name}.{}", key.value);
        let deeper = unquoted(&name, &table, own);
        if deeper.is_empty() {
            found.push((name, value));
        } else {
            found.extend(deeper);
        }
    }
    found
}
