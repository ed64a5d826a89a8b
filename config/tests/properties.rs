//! No text, whatever it says, does more than give a configuration or errors with places.

use proptest::prelude::*;
use viaduct_config::Config;

const SEEDS: [&str; 3] = [
    include_str!("../../examples/single-node.toml"),
    include_str!("../../examples/three-nodes/node-a.toml"),
    "node.name = 'a'\nunderlay = {interface = 'e', address = '192.0.2.1'}\n\
     networks = [{name = 'n', vni = 1, pod_prefixes = ['10.1.0.0/31'], cluster_prefixes = ['10.0.0.0/8']}]\n\
     pods = [{interface = 'p', addresses = ['10.1.0.1']}]\n\
     routes = [{vtep = '192.0.2.2', vtep_mac = '02:00:00:00:00:02', prefixes = ['10.2.0.0/16', '10.2.0.1/32']}]\n",
];

/// Words that turn one valid file into an almost valid one.
const WORDS: [&str; 22] = [
    "\"\"",
    "-1",
    "0",
    "65",
    "99999999999999999999",
    "1e308",
    "[]",
    "{}",
    "\"::/0\"",
    "\"0.0.0.0/0\"",
    "\"10.244.1.0\"",
    "\"fd00::1\"",
    "\"10.244.1.2/24\"",
    "\"é\"",
    "[[pods]]",
    "[[routes]]",
    "[node]",
    "2020-01-01",
    "nan",
    "\u{0}",
    "\n",
    "\u{feff}",
];

fn check(text: &str) -> Result<(), TestCaseError> {
    let Err(errors) = Config::parse(text, "test") else {
        return Ok(());
    };
    let lines = text.split('\n').count();
    let mut previous = None;
    prop_assert!(errors.iter().len() > 0);
    for error in &errors {
        let position = error.position.unwrap();
        prop_assert!(
            (1..=lines).contains(&position.line) && position.column >= 1,
            "{error}"
        );
        prop_assert!(previous <= Some(position), "not sorted: {errors}");
        prop_assert!(!error.message.contains('\n'), "{error}");
        previous = Some(position);
    }
    Ok(())
}

/// The byte offset of the character boundary nearest to `at` parts of `text`.
fn cut(text: &str, at: prop::sample::Index) -> usize {
    let mut offset = at.index(text.len() + 1);
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_text(text in any::<String>()) {
        check(&text)?;
    }

    #[test]
    fn text_of_toml_characters(text in "[\\[\\]{}=\"'.,#a-z0-9_\n é-]{0,200}") {
        check(&text)?;
    }

    #[test]
    fn mutated_examples(
        seed in 0..SEEDS.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..24, 0..WORDS.len()), 1..6),
    ) {
        let mut text = SEEDS[seed].to_owned();
        for (at, length, word) in edits {
            let start = cut(&text, at);
            let mut end = (start + length).min(text.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            text.replace_range(start..end, WORDS[word]);
        }
        check(&text)?;
    }

    /// Values replaced in place, so that the file stays TOML and the rules are reached.
    #[test]
    fn values_replaced(
        seed in 0..SEEDS.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..WORDS.len()), 1..4),
    ) {
        let mut lines: Vec<String> = SEEDS[seed].lines().map(str::to_owned).collect();
        for (at, word) in edits {
            let index = at.index(lines.len());
            if let Some((key, _)) = lines[index].clone().split_once(" = ") {
                lines[index] = format!("{} = {}", key.trim_start_matches('#'), WORDS[word]);
            }
        }
        check(&lines.join("\n"))?;
    }
}
