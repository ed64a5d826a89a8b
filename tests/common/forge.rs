//! Packets that nobody should send, and who hears them.

use std::sync::{Arc, Mutex};
use std::thread;

use super::traffic::{PYTHON, script};
use super::{Namespace, Process, must, wait_for};

/// Hears datagrams at port 7777 of some addresses, until dropped.
pub struct Ears {
    process: u32,
    words: Arc<Mutex<Vec<String>>>,
}

impl Namespace {
    /// `forge.py` with these words; what it printed.
    pub fn forge(&self, words: &str) -> String {
        let mut command = self.command(PYTHON);
        must(
            command
                .arg(script("forge.py"))
                .args(words.split_whitespace()),
        )
    }

    pub fn hear(&self, addresses: &[&str]) -> Ears {
        self.listen(&format!("hear {}", addresses.join(" ")))
    }

    /// Hears words that begin with "leak" in ICMPv6 packets of any type.
    pub fn hear_icmpv6(&self) -> Ears {
        self.listen("hear6")
    }

    fn listen(&self, what: &str) -> Ears {
        let script = script("forge.py");
        let words = format!("{PYTHON} {script} {what}");
        let mut process = self.spawn(&words);
        assert_eq!(process.line(), "ready", "{words}");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = Ears {
            process: process.id(),
            words: Arc::clone(&heard),
        };
        // Ends with the process, which it reaps.
        thread::spawn(move || listen(process, &heard));
        ears
    }
}

fn listen(mut process: Process, heard: &Mutex<Vec<String>>) {
    loop {
        let line = process.line();
        if line.is_empty() {
            return;
        }
        heard.lock().expect("no panic").push(line);
    }
}

impl Ears {
    /// What has been heard since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.words.lock().expect("no panic"))
    }

    /// Waits until these words are heard, and gives what else was.
    pub fn until(&self, words: &[String]) -> Vec<String> {
        let has = || {
            let heard = self.words.lock().expect("no panic");
            words.iter().all(|word| heard.contains(word))
        };
        wait_for(&format!("{words:?} to be heard"), has);
        let mut all = self.take();
        all.retain(|heard| !words.contains(heard));
        all
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        let pid = self.process.to_string();
        let _ = std::process::Command::new("kill")
            .args(["-KILL", &pid])
            .output();
    }
}
