//! What a router that does not run has left in the kernel of this network namespace, told from what
//! others have left: found first, without touching anything, then removed.

use std::path::{Path, PathBuf};

use tracing::info;

use super::nft::Nft;
use super::settings::{self, Origin, Settings};
use super::table::{self, Listing};
use crate::kernel::{Kernel, KernelError};
use crate::place::Place;

/// Why nothing is removed.
#[derive(Debug, thiserror::Error)]
pub enum LeftoversError {
    /// What there is was made for another node.
    #[error(
        "the kernel's path in this network namespace is node {other}'s, not {node}'s: nothing was \
         removed; name {other}, or run this in the network namespace where {node} ran"
    )]
    OtherNode {
        /// The node that was named.
        node: String,
        /// The node whose it is.
        other: String,
    },
    /// The node's router ran elsewhere.
    #[error(
        "node {node} ran in another network namespace (says {}): nothing was removed; run this \
         there (ip netns exec NAME ..., nsenter --net=...)",
        file.display()
    )]
    OtherNamespace {
        /// The node.
        node: String,
        /// The file that says so.
        file: PathBuf,
    },
    /// The kernel could not be asked, or refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The firewall could not be asked, or refused.
    #[error("cannot remove the firewall table: {0}")]
    Firewall(String),
}

/// What a node has left here.
#[derive(Debug)]
pub struct Leftovers {
    file: PathBuf,
    place: Place,
    origin: Origin,
    /// Whether device, table or the file say that what has our mark is this node's.
    kernel: bool,
    table: bool,
}

impl Leftovers {
    /// Looks for what the node's router left: `file` is where it wrote down what settings were,
    /// `place` where this is called.
    ///
    /// # Errors
    ///
    /// If what there is, is another node's or in another namespace, or the kernel cannot be asked.
    pub async fn find(
        kernel: &Kernel,
        node: &str,
        file: &Path,
        place: Place,
    ) -> Result<Self, LeftoversError> {
        let origin = settings::origin(file, &place);
        let (_, devices) = kernel.links().await?;
        // Without nft there is no table.
        let listing = Nft::default().table().await.ok().flatten();
        let comment = listing.as_deref().map(Listing::parse);
        let comment = comment.as_ref().and_then(Listing::comment);
        let table_owner = comment.and_then(table::owner);
        let owners = devices.iter().filter_map(|device| device.owner.as_deref());
        let mut owners = owners.chain(table_owner).filter(|owner| !owner.is_empty());
        let owner = owners.next();
        if let Some(other) = owner.into_iter().chain(owners).find(|owner| *owner != node) {
            return Err(LeftoversError::OtherNode {
                node: node.to_owned(),
                other: other.to_owned(),
            });
        }
        if origin == Origin::OtherNamespace {
            return Err(LeftoversError::OtherNamespace {
                node: node.to_owned(),
                file: file.to_owned(),
            });
        }
        // Routes and addresses have no name: they are of the one router of the namespace, whom
        // device, table or file name.
        let kernel = owner.is_some() || origin == Origin::Here;
        Ok(Self {
            file: file.to_owned(),
            place,
            origin,
            kernel,
            table: kernel && listing.is_some(),
        })
    }

    /// Whether there is nothing of the node's.
    pub fn is_empty(&self) -> bool {
        !self.kernel && self.origin == Origin::Nothing
    }

    /// Removes it, and restores the settings; how many entries and devices there were.
    ///
    /// # Errors
    ///
    /// If the kernel refuses. Calling it again goes on.
    pub async fn remove(self, kernel: &Kernel) -> Result<usize, LeftoversError> {
        let mut removed = 0;
        if self.kernel {
            removed = super::bring_entries::remove_entries(kernel).await?;
        }
        if self.table {
            let removed = Nft::default().apply(&table::removal()).await;
            removed.map_err(|error| LeftoversError::Firewall(error.to_string()))?;
        }
        if self.origin == Origin::EarlierBoot {
            info!("the kernel settings that were written down were of an earlier boot");
        }
        Settings::load(self.file, self.place).restore();
        Ok(removed)
    }
}
