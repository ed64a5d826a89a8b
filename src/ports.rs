//! Which UDP ports are taken in this network namespace.

use std::fs;

/// Whether some socket of the thread's network namespace has this UDP port (proc(5), `net/udp`).
pub(crate) fn is_udp_port_taken(port: u16) -> bool {
    ["udp", "udp6"].iter().any(|table| {
        let sockets = fs::read_to_string(format!("/proc/thread-self/net/{table}"));
        sockets.is_ok_and(|sockets| has_port(&sockets, port))
    })
}

fn has_port(sockets: &str, port: u16) -> bool {
    let end = format!(":{port:04X}");
    let mut local = sockets
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    local.any(|address| address.ends_with(&end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_in_what_proc_says() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue\n  \
                     123: 00000000:1F0A 00000000:0000 07 00000000:00000000\n";
        assert!(has_port(table, 7946));
        assert!(!has_port(table, 7947) && !has_port(table, 0x0A));
    }
}
