//! This router with another configuration: a name, and TOML that is put into the usual one.

use std::str::FromStr;

use anyhow::{Context, ensure};
use toml::{Table, Value};

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Variant {
    pub(crate) name: String,
    pub(crate) toml: String,
}

impl FromStr for Variant {
    type Err = anyhow::Error;

    /// `NAME=TOML`.
    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, toml) = text
            .split_once('=')
            .context("a variant is NAME=TOML, as in hooks='pods.attach = \"tc\"'")?;
        let known = |c: char| c.is_ascii_alphanumeric() || c == '-';
        ensure!(
            !name.is_empty() && name.chars().all(known),
            "{name:?} is no name: letters, digits and - are possible"
        );
        toml.parse::<Table>()
            .with_context(|| format!("the TOML of variant {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            toml: toml.to_owned(),
        })
    }
}

/// A configuration with others put into it. A table is put into each element of a list of tables: `pods.x = 1` sets `x`
/// of every pod.
pub(crate) fn merged(text: &str, extra: &[&str]) -> anyhow::Result<String> {
    let mut all: Table = text.parse().context("the usual configuration")?;
    for extra in extra {
        let extra: Table = extra
            .parse()
            .with_context(|| format!("the variant's TOML {extra:?}"))?;
        merge(&mut all, extra);
    }
    Ok(all.to_string())
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(into)), Value::Table(from)) => merge(into, from),
            (Some(Value::Array(into)), Value::Table(from)) => {
                let tables = into.iter_mut().filter_map(Value::as_table_mut);
                tables.for_each(|into| merge(into, from.clone()));
            }
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_merged_and_lists_of_tables_one_by_one() {
        let usual = "[workers]\ncount = 1\n[[pods]]\nname = \"a\"\n[[pods]]\nname = \"b\"\n";
        let extra = [
            "workers.cpus = [0]",
            "pods.attach = \"tc\"\nworkers.count = 2\nsettled = true",
        ];
        let all: Table = merged(usual, &extra)
            .expect("TOML")
            .parse()
            .expect("TOML again");
        let expected = "settled = true\n[workers]\ncount = 2\ncpus = [0]\n[[pods]]\nname = \"a\"\nattach = \"tc\"\n\
                        [[pods]]\nname = \"b\"\nattach = \"tc\"\n";
        assert_eq!(all, expected.parse().expect("TOML"));
    }

    #[test]
    fn what_is_no_variant_is_refused() {
        let good: Variant = "hooks=pods.attach = \"tc\"".parse().expect("a variant");
        assert_eq!(
            (good.name.as_str(), good.toml.as_str()),
            ("hooks", "pods.attach = \"tc\"")
        );
        for bad in ["hooks", "=a = 1", "a b=a = 1", "hooks=a = ", "hooks=[a"] {
            assert!(bad.parse::<Variant>().is_err(), "{bad}");
        }
    }
}
