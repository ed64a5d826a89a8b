//! Which kernel settings the slow path needs, interface by interface, and which of the host's own
//! are in its way (Linux `Documentation/networking/ip-sysctl.rst`).

use super::settings::Wanted;

/// What is to be set, and what is not ours to set, in sentences.
#[derive(Debug, Default)]
pub(super) struct Needs {
    pub(super) set: Wanted,
    pub(super) host: Vec<String>,
    /// Whether the host has IPv6.
    pub(super) v6: bool,
}

/// The interfaces that the kernel's path goes by.
pub(super) struct Interfaces<'a> {
    pub(super) underlay: &'a str,
    pub(super) devices: &'a [&'a str],
    /// Pods' interfaces in the network that the kernel carries, and whether they have IPv6.
    pub(super) pods: &'a [(&'a str, bool)],
    /// Those of pods in other networks.
    pub(super) others: &'a [&'a str],
    /// Whether the network has IPv6 addresses.
    pub(super) v6: bool,
}

impl Interfaces<'_> {
    fn pods(&self) -> impl Iterator<Item = &str> {
        self.pods.iter().map(|(name, _)| *name)
    }

    fn carrying(&self) -> impl Iterator<Item = &str> {
        let devices = self.devices.iter().copied();
        self.pods().chain(devices).chain([self.underlay])
    }
}

/// What the interfaces need. `read` gives a setting as it is, or was before Viaduct changed it.
pub(super) fn needs(of: &Interfaces<'_>, read: impl Fn(&str) -> Option<String>) -> Needs {
    let mut needs = Needs::default();
    let wanted = &mut needs.set;
    for interface in of.carrying() {
        wanted.insert(format!("ipv4/conf/{interface}/forwarding"), "1");
        wanted.insert(format!("ipv6/conf/{interface}/forwarding"), "1");
    }
    for pod in of.pods() {
        // Pods with a /24 take each other for neighbours; the routes say whom to answer for.
        wanted.insert(format!("ipv4/conf/{pod}/proxy_arp"), "1");
        wanted.insert(format!("ipv6/conf/{pod}/proxy_ndp"), "1");
        // Answers for others are otherwise held back for up to 0.8 s.
        wanted.insert(format!("ipv4/neigh/{pod}/proxy_delay"), "0");
        wanted.insert(format!("ipv6/neigh/{pod}/proxy_delay"), "0");
        // A pod must not tell the host where the world is (CVE-2020-13401 is of this kind).
        wanted.insert(format!("ipv6/conf/{pod}/accept_ra"), "0");
    }
    for device in of.devices {
        wanted.insert(format!("ipv6/conf/{device}/accept_ra"), "0");
    }
    reverse_path(wanted, of, &read);
    others(wanted, of, &read);
    answer_arp(&mut needs, of, &read);
    have_v6(&mut needs, of, &read);
    forward_v6(&mut needs.set, of, &read);
    needs
}

fn number(read: &impl Fn(&str) -> Option<String>, name: &str) -> Option<u8> {
    read(name)?.parse().ok()
}

/// A pod's packets to a node leave by the underlay, the answers come by VXLAN: strict checks of the
/// reverse path would drop them. The greater of `all` and the interface's counts, so loose wins.
fn reverse_path(wanted: &mut Wanted, of: &Interfaces<'_>, read: &impl Fn(&str) -> Option<String>) {
    let value = |name: &str| number(read, &format!("ipv4/conf/{name}/rp_filter"));
    for interface in of.devices.iter().copied().chain([of.underlay]) {
        let own = value(interface).or_else(|| value("default"));
        if own.into_iter().chain(value("all")).max() == Some(1) {
            wanted.insert(format!("ipv4/conf/{interface}/rp_filter"), "2");
        }
    }
}

/// What the interfaces of pods need whose network the kernel does not carry: answers for their
/// gateway, whose route back may be another network's, and nothing forwarded.
fn others(wanted: &mut Wanted, of: &Interfaces<'_>, read: &impl Fn(&str) -> Option<String>) {
    let strict = number(read, "ipv4/conf/all/rp_filter") == Some(1);
    for pod in of.others {
        for (name, value) in [
            ("ipv4/conf/{}/rp_filter", if strict { "2" } else { "0" }),
            ("ipv4/conf/{}/forwarding", "0"),
            ("ipv6/conf/{}/forwarding", "0"),
            ("ipv6/conf/{}/accept_ra", "0"),
        ] {
            wanted.insert(name.replace("{}", pod), value);
        }
    }
}

/// Pods ask for their gateway, which is an address of link scope and of no subnet of theirs. The
/// greater of `all` and the interface's `arp_ignore` counts: 2 wants both in one subnet, 3 does not
/// answer for addresses of host scope, 8 does not answer (`arp_ignore()`, Linux `net/ipv4/arp.c`).
fn answer_arp(needs: &mut Needs, of: &Interfaces<'_>, read: &impl Fn(&str) -> Option<String>) {
    let value = |name: &str| number(read, &format!("ipv4/conf/{name}/arp_ignore")).unwrap_or(0);
    let answers = |value: u8| value != 2 && value != 8;
    let all = value("all");
    if !answers(all) && !answers(all.max(3)) {
        needs.host.push(format!(
            "net.ipv4.conf.all.arp_ignore is {all}: the host answers no ARP request, neither of pods \
             for their gateway nor of other nodes (sysctl -w net.ipv4.conf.all.arp_ignore=1)"
        ));
        return;
    }
    for pod in of.pods().chain(of.others.iter().copied()) {
        if !answers(all.max(value(pod))) {
            let set = if answers(all) { "0" } else { "3" };
            needs.set.insert(format!("ipv4/conf/{pod}/arp_ignore"), set);
        }
    }
    let underlay = of.underlay;
    if value(underlay) == 8 {
        needs.host.push(format!(
            "net.ipv4.conf.{underlay}.arp_ignore is 8: other nodes' ARP requests for this node are not \
             answered (sysctl -w net.ipv4.conf.{underlay}.arp_ignore=1)"
        ));
    }
}

/// IPv6 is switched on where it is ours. Where the host has it switched off as a whole, that is
/// said, if anything wants it.
fn have_v6(needs: &mut Needs, of: &Interfaces<'_>, read: &impl Fn(&str) -> Option<String>) {
    let off = |name: &str| {
        let setting = read(&format!("ipv6/conf/{name}/disable_ipv6"));
        setting.as_deref() == Some("1")
    };
    let none = read("ipv6/conf/all/disable_ipv6").is_none();
    needs.v6 = !none && !off("all");
    let wants = of.v6 || of.pods.iter().any(|(_, v6)| *v6);
    if !needs.v6 {
        if wants {
            let mend = if none {
                "the kernel has no IPv6 (ipv6.disable=1)"
            } else {
                "net.ipv6.conf.all.disable_ipv6 is 1; sysctl -w net.ipv6.conf.all.disable_ipv6=0"
            };
            needs.host.push(format!(
                "IPv6 is switched off on this host, so the kernel carries no IPv6 between pods: {mend}"
            ));
        }
        return;
    }
    let pods = of.pods.iter().filter(|(_, v6)| *v6).map(|(name, _)| *name);
    let devices = of.devices.iter().copied().filter(|_| of.v6);
    for interface in pods.chain(devices) {
        // Also where it is new, and `default` says so.
        if off(interface) || off("default") {
            let name = format!("ipv6/conf/{interface}/disable_ipv6");
            needs.set.insert(name, "0");
        }
    }
}

/// The kernel forwards IPv6 only if it does so everywhere, or (Linux 6.17) where it is forced to.
fn forward_v6(wanted: &mut Wanted, of: &Interfaces<'_>, read: &impl Fn(&str) -> Option<String>) {
    let underlay = of.underlay;
    // A host that forwards ignores router advertisements, unless told to take them all the same.
    if read(&format!("ipv6/conf/{underlay}/accept_ra")).as_deref() == Some("1") {
        wanted.insert(format!("ipv6/conf/{underlay}/accept_ra"), "2");
    }
    if read("ipv6/conf/all/forwarding").as_deref() != Some("0") {
        return;
    }
    if read(&format!("ipv6/conf/{underlay}/force_forwarding")).is_none() {
        wanted.insert("ipv6/conf/all/forwarding".into(), "1");
        return;
    }
    for interface in of.carrying() {
        wanted.insert(format!("ipv6/conf/{interface}/force_forwarding"), "1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(values: &[(&str, &str)]) -> Needs {
        let interfaces = Interfaces {
            underlay: "eth0",
            devices: &["viaduct.1"],
            pods: &[("veth-a", true)],
            others: &["veth-x"],
            v6: true,
        };
        needs(&interfaces, |name| {
            let found = values.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn wanted_with(values: &[(&str, &str)]) -> Wanted {
        with(values).set
    }

    #[test]
    fn arp_is_answered_where_ours_can_win() {
        let name = "ipv4/conf/veth-a/arp_ignore";
        for (all, own, set) in [
            ("0", "0", None),
            ("1", "0", None),
            ("2", "0", Some(&"3")),
            ("2", "3", None),
            ("0", "8", Some(&"0")),
            ("1", "2", Some(&"0")),
            ("3", "0", None),
        ] {
            let needs = with(&[("ipv4/conf/all/arp_ignore", all), (name, own)]);
            assert_eq!(needs.set.get(name), set, "{all} {own}");
            assert!(!needs.host.iter().any(|said| said.contains("arp_ignore")));
        }
        let needs = with(&[("ipv4/conf/all/arp_ignore", "8")]);
        assert!(needs.host[0].contains("sysctl -w net.ipv4.conf.all.arp_ignore=1"));
        let needs = with(&[("ipv4/conf/eth0/arp_ignore", "8")]);
        assert!(needs.host[0].contains("conf.eth0.arp_ignore"));
    }

    #[test]
    fn ipv6_is_switched_on_where_it_is_ours() {
        let ours = "ipv6/conf/veth-a/disable_ipv6";
        let on = ("ipv6/conf/all/disable_ipv6", "0");
        let needs = with(&[on, (ours, "1")]);
        assert!(needs.v6 && needs.host.is_empty());
        assert_eq!(needs.set.get(ours), Some(&"0"));
        assert_eq!(with(&[on]).set.get(ours), None);
        let needs = with(&[("ipv6/conf/all/disable_ipv6", "1"), (ours, "1")]);
        assert!(!needs.v6);
        assert_eq!(needs.host.len(), 1, "{:?}", needs.host);
        assert_eq!(needs.set.get(ours), None);
    }

    #[test]
    fn pods_of_other_networks_are_not_checked_strictly() {
        let name = "ipv4/conf/veth-x/rp_filter";
        assert_eq!(wanted_with(&[]).get(name), Some(&"0"));
        let strict = wanted_with(&[("ipv4/conf/all/rp_filter", "1")]);
        assert_eq!(strict.get(name), Some(&"2"));
    }
    #[test]
    fn strict_reverse_path_checks_are_loosened_and_others_left() {
        let strict = wanted_with(&[("ipv4/conf/all/rp_filter", "1")]);
        assert_eq!(strict.get("ipv4/conf/eth0/rp_filter"), Some(&"2"));
        let loose = [
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/eth0/rp_filter", "2"),
        ];
        assert_eq!(wanted_with(&loose).get("ipv4/conf/eth0/rp_filter"), None);
        assert_eq!(wanted_with(&[]).get("ipv4/conf/eth0/rp_filter"), None);
    }

    #[test]
    fn ipv6_is_forwarded_where_it_can_be_told_and_everywhere_else() {
        let old = wanted_with(&[("ipv6/conf/all/forwarding", "0")]);
        assert_eq!(old.get("ipv6/conf/all/forwarding"), Some(&"1"));
        let new = [
            ("ipv6/conf/all/forwarding", "0"),
            ("ipv6/conf/eth0/force_forwarding", "0"),
        ];
        let new = wanted_with(&new);
        assert_eq!(new.get("ipv6/conf/all/forwarding"), None);
        assert_eq!(new.get("ipv6/conf/veth-a/force_forwarding"), Some(&"1"));
        let set = wanted_with(&[("ipv6/conf/all/forwarding", "1")]);
        assert_eq!(set.get("ipv6/conf/veth-a/force_forwarding"), None);
    }

    #[test]
    fn a_host_that_learns_its_routes_goes_on_to() {
        let learns = wanted_with(&[("ipv6/conf/eth0/accept_ra", "1")]);
        assert_eq!(learns.get("ipv6/conf/eth0/accept_ra"), Some(&"2"));
        assert_eq!(wanted_with(&[]).get("ipv6/conf/eth0/accept_ra"), None);
    }
}
