//! The nodes of the cluster.

use std::fmt::Write;

use serde_json::{Value, json};

use super::table::{age, table, titled};

pub(crate) fn peers_text(reply: &Value) -> String {
    let mut peers = reply.get("peers").cloned().unwrap_or_default();
    for peer in peers.as_array_mut().into_iter().flatten() {
        peer["age"] = peer["known_for_s"].as_u64().map(age).into();
    }
    let mut text = table(
        &peers,
        &[
            ("NODE", "node"),
            ("STATE", "state"),
            ("ADDRESS", "address"),
            ("AGE", "age"),
            ("PREFIXES", "prefixes"),
        ],
    );
    for problem in reply["problems"].as_array().into_iter().flatten() {
        let _ = writeln!(text, "\n{}", problem["text"].as_str().unwrap_or_default());
        if let Some(mend) = problem["mend"].as_str() {
            titled(&mut text, "to mend:", mend);
        }
    }
    let unused = reply["unused"].as_array().map_or(0, Vec::len);
    if unused > 0 {
        text += "\nNot used of what they say:\n";
        text += &not_used_text(&reply["unused"]);
    }
    if let Some(address) = reply["yielded_to"].as_str() {
        let _ = writeln!(
            text,
            "\nThe node at {address} has this node's name: this one says nothing."
        );
    }
    for (what, counts) in [
        ("Datagrams", &reply["refused"]),
        ("Records", &reply["records_refused"]),
    ] {
        let rows = counts.as_object().into_iter().flatten();
        let rows: Vec<_> = rows
            .map(|(why, n)| json!({ "reason": why, "count": n, "meaning": reply["meanings"][why] }))
            .collect();
        if rows.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n{what} that were refused since the start:");
        let columns = [
            ("COUNT", "count"),
            ("REASON", "reason"),
            ("MEANING", "meaning"),
        ];
        text += &table(&Value::Array(rows), &columns);
    }
    text
}

/// What nodes say and is not used, why, and what mends it.
pub(super) fn not_used_text(unused: &Value) -> String {
    let mut text = table(
        unused,
        &[("NODE", "node"), ("WHAT", "what"), ("WHY", "why")],
    );
    let mut mended: Vec<_> = unused
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|unused| unused["mend"].as_str())
        .collect();
    mended.sort_unstable();
    mended.dedup();
    for mend in mended {
        titled(&mut text, "to mend:", mend);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_listed_by_reason() {
        let reply = json!({
            "peers": [{ "node": "a", "state": "this node", "address": "192.0.2.1:7950", "prefixes": [], "known_for_s": 3 }],
            "refused": { "forged": 2 }, "records_refused": { "no-certificate": 41 },
            "meanings": { "forged": "It was changed on its way.", "no-certificate": "It has no certificate." },
        });
        let text = peers_text(&reply);
        let lines: Vec<Vec<_>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let has = |words: &str| lines.contains(&words.split(' ').collect());
        assert!(
            has("Datagrams that were refused since the start:"),
            "{text}"
        );
        assert!(has("2 forged It was changed on its way."), "{text}");
        assert!(has("41 no-certificate It has no certificate."), "{text}");
        let nothing = json!({ "peers": [], "refused": {}, "records_refused": {} });
        assert!(!peers_text(&nothing).contains("refused"));
    }
}
