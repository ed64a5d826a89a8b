//! docs/packets.md says what becomes of every packet, and says it in the reasons' own sentences.

use std::fmt::Write as _;
use std::fs;

use viaduct_router::DropReason;

const BEGIN: &str = "<!-- reasons -->\n";
const END: &str = "<!-- /reasons -->\n";

fn table() -> String {
    let mut table = String::from("| Reason | |\n|---|---|\n");
    for reason in DropReason::ALL {
        let _ = writeln!(table, "| `{}` | {} |", reason.label(), reason.sentence());
    }
    table
}

#[test]
fn every_reason_is_explained_and_stands_in_a_class_of_packets() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/packets.md");
    let text = fs::read_to_string(file).expect("docs/packets.md");
    let (classes, rest) = text.split_once(BEGIN).expect("a place for the reasons");
    let (reasons, after) = rest.split_once(END).expect("its end");
    for reason in DropReason::ALL {
        let name = format!("`{}`", reason.label());
        assert!(classes.contains(&name), "no packet is {name}");
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(file, format!("{classes}{BEGIN}{}{END}{after}", table())).expect("written");
        return;
    }
    assert_eq!(reasons, table(), "run again with UPDATE_DOCS=1");
}
