//! The layers of a guest's disks as libvirt has them once it started: those that XML gives and those that were detected,
//! each with the number that is its nodes' name and the `index` in live XML.
//!
//! One counter for the whole guest, from 1. Disks are numbered last to first, each with what its XML gives: the active
//! layer, its data file, the layers below, the throttle filters. What was detected gets numbers in a second round.

use crate::model::{Details, Disk, Document, Encryption, Layer as XmlLayer, Place};
use catena::Chain;
use catena::chain::End;
use catena::reference::Source;
use catena_format::Format;

/// A disk as libvirt has it while its guest runs.
#[derive(Clone, Debug)]
pub struct Running<'a> {
    /// What the XML says of it.
    pub disk: &'a Disk,
    /// The layers, the active one first.
    pub layers: Vec<RunningLayer>,
    /// Whether the end of the chain is known. If not, QEMU follows the last header by itself.
    pub terminated: bool,
    /// The numbers of the throttle filters.
    pub filters: Vec<u32>,
}

/// A layer of it.
#[derive(Clone, Debug)]
pub struct RunningLayer {
    /// Where it is.
    pub source: Source,
    /// Its format in libvirt's terms: an encrypted raw image is raw.
    pub format: Format,
    /// What `<source>` says beside the place; detected layers have what the active one's labels say, and no more.
    pub details: Details,
    /// Most bytes of tables that QEMU keeps.
    pub cache_size: Option<u64>,
    /// The number.
    pub index: u32,
    /// The data file.
    pub store: Option<RunningStore>,
}

/// A data file.
#[derive(Clone, Debug)]
pub struct RunningStore {
    /// Where it is.
    pub source: Source,
    /// What `<source>` says beside the place.
    pub details: Details,
    /// The number.
    pub index: u32,
    /// Whether it is opened for reading alone.
    pub readonly: bool,
}

impl RunningLayer {
    /// How it is encrypted, where QEMU decrypts it.
    pub fn encryption(&self) -> Option<&Encryption> {
        let encryption = self.details.encryption.as_ref()?;
        (encryption.engine.as_deref() != Some("librbd")).then_some(encryption)
    }
}

/// Numbers the disks of a document. `chains` has each disk's, from [`Disk::chain`]; a disk without one, such as an empty
/// drive, has no nodes either.
pub fn number<'a>(document: &'a Document, chains: &[Option<Chain>]) -> Vec<Option<Running<'a>>> {
    let mut counter = 0_u32;
    let mut next = || {
        counter = counter.saturating_add(1);
        counter
    };
    let mut running: Vec<Option<Running<'a>>> = Vec::new();
    for (disk, chain) in document.disks.iter().zip(chains).rev() {
        // An SD card has a drive of QEMU's old way.
        running.push(match chain {
            Some(chain) if disk.bus.as_deref() != Some("sd") => given(disk, chain, &mut next),
            _ => None,
        });
    }
    running.reverse();
    for (disk, chain) in running.iter_mut().zip(chains).rev() {
        if let (Some(disk), Some(chain)) = (disk, chain) {
            found(disk, chain, &mut next);
        }
    }
    running
}

/// One disk for itself, whatever its bus; the numbers mean nothing. `None` where it has no image.
pub(crate) fn alone<'a>(disk: &'a Disk, chain: &Chain) -> Option<Running<'a>> {
    let mut next = || 0;
    let mut running = given(disk, chain, &mut next)?;
    found(&mut running, chain, &mut next);
    Some(running)
}

/// The layers that the XML gives.
fn given<'a>(disk: &'a Disk, chain: &Chain, next: &mut impl FnMut() -> u32) -> Option<Running<'a>> {
    let mut layers = Vec::new();
    for (number, layer) in disk.layers.iter().enumerate() {
        let Place::Image(source) = &layer.place else {
            return None;
        };
        layers.push(RunningLayer {
            source: source.clone(),
            format: layer.format.unwrap_or(Format::Raw),
            details: layer.details.clone(),
            cache_size: layer.cache_size,
            index: next(),
            store: layer
                .data_store
                .as_deref()
                .and_then(|store| given_store(store, number > 0, next)),
        });
    }
    Some(Running {
        disk,
        layers,
        terminated: matches!(chain.end, End::Terminated),
        filters: disk.throttle.iter().map(|_| next()).collect(),
    })
}

/// A data file that the XML gives. libvirt reads `<readonly/>` after it, so that of a read-only disk is opened for
/// writing.
fn given_store(store: &XmlLayer, readonly: bool, next: &mut impl FnMut() -> u32) -> Option<RunningStore> {
    Some(RunningStore {
        source: store.source()?.clone(),
        details: store.details.clone(),
        index: next(),
        readonly,
    })
}

/// What was detected: the data file of the last layer that the XML gives, unless it closes the chain, and what is below.
fn found(disk: &mut Running<'_>, chain: &Chain, next: &mut impl FnMut() -> u32) {
    let given = disk.layers.len();
    let closed = matches!(disk.disk.below, crate::model::Below::Closed(_));
    let readonly = disk.disk.readonly;
    let labels = disk
        .layers
        .last()
        .map(|layer| layer.details.seclabels.clone())
        .unwrap_or_default();
    let details = Details {
        seclabels: labels,
        ..Details::default()
    };
    let store = |layer: &catena::Layer, readonly: bool, next: &mut dyn FnMut() -> u32| {
        let source = layer.data_file.as_ref()?.source.clone()?;
        Some(RunningStore {
            source,
            details: details.clone(),
            index: next(),
            readonly,
        })
    };
    if !closed
        && let (Some(last), Some(layer)) = (disk.layers.last_mut(), chain.layers.get(given.saturating_sub(1)))
        && last.store.is_none()
    {
        last.store = store(layer, readonly || given > 1, next);
    }
    for layer in chain.layers.iter().skip(given) {
        let index = next();
        let format = match layer.format {
            // An ISO image is raw to QEMU, a LUKS container raw with encryption to libvirt.
            Format::Iso | Format::Luks => Format::Raw,
            format => format,
        };
        disk.layers.push(RunningLayer {
            source: layer.source.clone(),
            format,
            details: details.clone(),
            cache_size: None,
            index,
            store: store(layer, true, next),
        });
    }
}
