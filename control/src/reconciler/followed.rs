//! An interface that is wanted by name, and followed by its number once it has been seen.

use tracing::info;

use crate::kernel::LinkInfo;

/// The interface that had a wanted name when it was looked at, whatever its name is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Followed {
    /// Its number; 0: none.
    index: u32,
    /// Its name now; empty: none.
    name: String,
}

impl Followed {
    /// The interface of this number, 0: none, which had the wanted name when somebody saw it.
    pub(crate) fn known(index: u32, wanted: &str) -> Self {
        match index {
            0 => Self::default(),
            index => Self {
                index,
                name: wanted.to_owned(),
            },
        }
    }

    /// The number to look for, 0: none. Where it is not found, the wanted name is.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The interface's name now: the wanted one, unless it was renamed.
    pub(crate) fn name<'a>(&'a self, wanted: &'a str) -> &'a str {
        if self.name.is_empty() {
            wanted
        } else {
            &self.name
        }
    }

    /// Follows what was found. True if the interface has another name than before.
    pub(crate) fn follow(&mut self, link: &LinkInfo, wanted: &str) -> bool {
        let renamed = self.index == link.index && self.name != link.name;
        if renamed {
            info!(
                from = self.name,
                to = link.name,
                configured = wanted,
                "an interface was renamed"
            );
        }
        self.index = link.index;
        self.name.clone_from(&link.name);
        renamed
    }

    /// Notes that an interface is gone: true if it was this one.
    pub(crate) fn lost(&mut self, index: u32) -> bool {
        let this = index != 0 && self.index == index;
        if this {
            *self = Self::default();
        }
        this
    }
}
