//! What the TOML parser and serde say, in an operator's words and with advice.

/// Turns a message of the `toml` crate into one that also says what to do.
pub(crate) fn explain(message: &str) -> String {
    unknown_key(message)
        .or_else(|| wrong_type(message))
        .unwrap_or_else(|| {
            format!("not valid TOML: {message}; correct it here or on the line before")
        })
        .replace('\n', "\\n")
}

/// The one of `known` that `word` was probably meant to be.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Long words are nobody's slip, and the distance costs their product.
    let word: Vec<char> = word
        .chars()
        .take(64)
        .map(|c| c.to_ascii_lowercase())
        .collect();
    known
        .into_iter()
        .map(|candidate| (distance(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean X?`, or nothing.
pub(crate) fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
}

/// Serde's "unknown field `a`, expected `b` or `c`" or "expected one of `b`, `c`, `d`".
fn unknown_key(message: &str) -> Option<String> {
    // The key may itself contain anything, the known ones do not: hence from the right.
    let (key, expected) = message
        .strip_prefix("unknown field `")?
        .rsplit_once("`, expected ")?;
    let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
    Some(match nearest(key, known.iter().copied()) {
        Some(meant) => format!("unknown key `{key}`; did you mean `{meant}`?"),
        None => format!(
            "unknown key `{key}`; remove it, or use one of those known here: {}",
            known.join(", ")
        ),
    })
}

/// Serde's "invalid type: integer `1`, expected a string".
fn wrong_type(message: &str) -> Option<String> {
    let (found, wanted) = message
        .strip_prefix("invalid type: ")?
        .rsplit_once(", expected ")?;
    let found = match found {
        "map" => "a table or a date",
        "sequence" => "a list",
        other => other.trim_end_matches(" as i128"),
    };
    let wanted = match wanted {
        "a sequence" => {
            "a list in square brackets, or, for tables, a header in double ones like [[pods]],"
        }
        "i64" => "a whole number below 2^63, without quotes,",
        "a string" => "a text in double quotes",
        other => other,
    };
    Some(format!("found {found} where {wanted} is needed; change it"))
}

/// Levenshtein distance of `word` from `candidate`, a hyphen and an underscore being the same.
fn distance(word: &[char], candidate: &str) -> usize {
    let same = |a: char, b: char| a == b || (a == '-' && b == '_') || (a == '_' && b == '-');
    let mut row: Vec<usize> = (0..=word.len()).collect();
    for (i, b) in candidate.chars().enumerate() {
        let mut previous = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (a, cell) in word.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            left = if same(*a, b) {
                previous
            } else {
                1 + previous.min(above).min(left)
            };
            *cell = left;
            previous = above;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_slips() {
        let distance = |a: &str, b| distance(&a.chars().collect::<Vec<_>>(), b);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("max-ports", "max_ports"), 0);
    }

    #[test]
    fn suggests_only_what_is_near() {
        let known = ["interface", "address", "xdp"];
        assert_eq!(nearest("Interfaces", known), Some("interface"));
        assert_eq!(nearest("adress", known), Some("address"));
        assert_eq!(nearest("color", known), None);
        assert_eq!(nearest(&"x".repeat(1_000_000), known), None);
    }

    #[test]
    fn survives_keys_that_look_like_messages() {
        let message = "unknown field `a`, expected `b\n`, expected `node`";
        assert_eq!(
            explain(message),
            "unknown key `a`, expected `b\\n`; remove it, or use one of those known here: node"
        );
    }
}
