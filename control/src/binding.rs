//! Which interface is a pod's: by name alone, or the one that somebody meant.

use viaduct_encap::MacAddr;

use crate::kernel::LinkInfo;

/// What makes an interface the pod's, beside its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// Nothing: whichever has the name is the pod's. A configuration file says so, which is written
    /// before there are interfaces.
    #[default]
    Name,
    /// The pod was added while it lived, and meant an interface that there was, or else the first
    /// of the name to come. When that is gone, another of its name is another pod's, and would get
    /// this pod's packets.
    Interface(Option<InterfaceId>),
}

/// What an interface is known by, beside its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceId {
    /// Its number, which no other interface of the namespace gets until the machine is restarted;
    /// 0: it is gone, or was of another namespace or boot.
    pub index: u32,
    /// Its MAC.
    pub mac: Option<MacAddr>,
}

impl InterfaceId {
    /// What an interface is known by now.
    pub(crate) fn of(link: &LinkInfo) -> Self {
        Self {
            index: link.index,
            mac: link.mac,
        }
    }

    fn is(self, link: &LinkInfo) -> bool {
        let numbered = self.index != 0 && self.index == link.index;
        numbered || (self.mac.is_some() && self.mac == link.mac)
    }
}

impl Binding {
    /// Whether an interface that has the pod's name, or had it, is the pod's.
    pub(crate) fn admits(&self, link: &LinkInfo) -> bool {
        match self {
            Self::Name | Self::Interface(None) => true,
            Self::Interface(Some(known)) => known.is(link),
        }
    }

    /// The number of the interface that is the pod's whatever its name is now; 0: not known.
    pub(crate) fn index(&self) -> u32 {
        match self {
            Self::Interface(Some(known)) => known.index,
            Self::Name | Self::Interface(None) => 0,
        }
    }

    /// Takes over what the pod's interface is known by now.
    pub(crate) fn follow(&mut self, link: &LinkInfo) {
        if let Self::Interface(known) = self {
            *known = Some(InterfaceId::of(link));
        }
    }

    /// Takes over that an interface is gone: its number says nothing any more.
    pub(crate) fn lost(&mut self, index: u32) {
        if let Self::Interface(Some(known)) = self
            && known.index == index
        {
            known.index = 0;
        }
    }

    /// What is wanted now of a pod that is bound so: what was learned of its interface since stays.
    pub(crate) fn want(&mut self, wanted: &Self) {
        let learned = matches!(
            (&*self, wanted),
            (Self::Interface(Some(_)), Self::Interface(_))
        );
        if !learned {
            self.clone_from(wanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{link, mac};

    #[test]
    fn an_interface_is_known_by_number_or_mac() {
        let mut was = link(7, "pod-a");
        was.mac = Some(mac(1));
        let mut binding = Binding::Interface(None);
        assert!(binding.admits(&was));
        binding.follow(&was);
        assert_eq!(binding.index(), 7);
        let with = |index, last| LinkInfo {
            mac: Some(mac(last)),
            ..link(index, "pod-a")
        };
        let admitted = |binding: &Binding| {
            [(7, 1), (7, 2), (8, 1), (8, 2)].map(|(index, last)| binding.admits(&with(index, last)))
        };
        assert_eq!(admitted(&binding), [true, true, true, false]);
        // Once it is gone, its number may be anybody's.
        binding.lost(6);
        assert_eq!(binding.index(), 7);
        binding.lost(7);
        assert_eq!(admitted(&binding), [true, false, true, false]);
        // Without a MAC nothing is known of it.
        let nothing = InterfaceId {
            index: 0,
            mac: None,
        };
        let no_mac = LinkInfo {
            mac: None,
            ..link(7, "pod-a")
        };
        assert!(!Binding::Interface(Some(nothing)).admits(&no_mac));
        let mut name = Binding::Name;
        name.follow(&was);
        assert_eq!(name, Binding::Name);
        assert!(admitted(&name).iter().all(|admitted| *admitted));
    }

    #[test]
    fn what_was_learned_stays() {
        let id = |index| {
            Binding::Interface(Some(InterfaceId {
                index,
                mac: Some(mac(1)),
            }))
        };
        for (was, wanted, is) in [
            (id(3), id(4), id(3)),
            (id(3), Binding::Interface(None), id(3)),
            (Binding::Interface(None), id(4), id(4)),
            (id(3), Binding::Name, Binding::Name),
            (Binding::Name, id(4), id(4)),
        ] {
            let mut binding = was;
            binding.want(&wanted);
            assert_eq!(binding, is);
        }
    }
}
