//! The layers of a guest's disks as libvirt has them once it started: those that XML gives and those that were detected,
//! each with the number that is its nodes' name and the `index` in live XML.
//!
//! One counter for the whole guest, from 1. Disks are numbered last to first in libvirt's order, each with what its XML gives: the active
//! layer, its data file, the layers below, the throttle filters. What was detected gets numbers in a second round.

use crate::generation::Generation;
use crate::model::{Below, Details, Disk, Document, Encryption, Layer as XmlLayer, Place, ThrottleGroup};
use catena::Chain;
use catena::chain::End;
use catena::reference::{Location, Protocol, Source};
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
    /// The throttle filters, the lowest first.
    pub filters: Vec<Filter<'a>>,
}

/// A throttle filter.
#[derive(Clone, Debug)]
pub struct Filter<'a> {
    /// The number.
    pub index: u32,
    /// The name of its group.
    pub name: &'a str,
    /// The group, where the document has it.
    pub group: Option<&'a ThrottleGroup>,
}

/// A layer of it.
#[derive(Clone, Debug)]
pub struct RunningLayer {
    /// Where it is.
    pub source: Source,
    /// Its format in libvirt's terms: an encrypted raw image is raw. A LUKS container that was detected is one still, for
    /// there is no secret to open it with.
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
/// drive, has no nodes either. libvirt 9.0 has neither data files nor throttle filters, and numbers none.
pub fn number<'a>(
    document: &'a Document,
    chains: &[Option<Chain>],
    generation: Generation,
) -> Vec<Option<Running<'a>>> {
    let mut counter = 0_u32;
    let mut next = || {
        counter = counter.saturating_add(1);
        counter
    };
    let mut running: Vec<Option<Running<'a>>> = document.disks.iter().map(|_| None).collect();
    let order = document.order();
    let at = |place: usize| Some((document.disks.get(place)?, chains.get(place)?.as_ref()?));
    for place in order.iter().rev().copied() {
        let empty = document.disks.get(place).and_then(Disk::active);
        if empty.is_some_and(|layer| layer.place == Place::Empty) {
            // A drive without a medium has its number for one.
            next();
            continue;
        }
        // An SD card has a drive of QEMU's old way.
        let Some(disk) = document
            .disks
            .get(place)
            .filter(|disk| disk.bus.as_deref() != Some("sd"))
        else {
            continue;
        };
        match (at(place), running.get_mut(place)) {
            (Some((_, chain)), Some(running)) => {
                *running = given(&document.throttle_groups, disk, chain, generation, &mut next);
            }
            // What libvirt alone can open has its numbers all the same.
            _ => {
                for _ in 0..numbers(disk, generation) {
                    next();
                }
            }
        }
    }
    for place in order.iter().rev().copied() {
        if let (Some((_, chain)), Some(Some(running))) = (at(place), running.get_mut(place)) {
            found(running, chain, generation, &mut next);
        }
    }
    running
}

/// One disk for itself, whatever its bus; the numbers mean nothing. `None` where it has no image.
pub(crate) fn alone<'a>(disk: &'a Disk, chain: &Chain) -> Option<Running<'a>> {
    let mut next = || 0;
    let mut running = given(&[], disk, chain, Generation::V11, &mut next)?;
    found(&mut running, chain, Generation::V11, &mut next);
    Some(running)
}

/// How many numbers the layers that the XML gives have, with what belongs to them.
fn numbers(disk: &Disk, generation: Generation) -> usize {
    let is_new = generation == Generation::V11;
    let images = disk
        .layers
        .iter()
        .filter(|layer| matches!(layer.place, Place::Image(_) | Place::Volume { .. }));
    images
        .map(|layer| 1 + usize::from(is_new && layer.data_store.is_some()))
        .sum::<usize>()
        + disk.throttle.iter().filter(|_| is_new).count()
}

/// The layers that the XML gives.
fn given<'a>(
    groups: &'a [ThrottleGroup],
    disk: &'a Disk,
    chain: &Chain,
    generation: Generation,
    next: &mut impl FnMut() -> u32,
) -> Option<Running<'a>> {
    let is_new = generation == Generation::V11;
    let mut layers = Vec::new();
    for (number, layer) in disk.layers.iter().enumerate() {
        layers.push(RunningLayer {
            source: layer.source()?.clone(),
            format: layer.format.unwrap_or(Format::Raw),
            details: while_running(&layer.details, layer.source()?, number == 0),
            cache_size: layer.cache_size,
            index: next(),
            store: layer
                .data_store
                .as_deref()
                .filter(|_| is_new)
                .and_then(|store| given_store(store, number > 0, next)),
        });
    }
    Some(Running {
        disk,
        layers,
        // A folder is no image that could have anything below it.
        terminated: (!is_blind(disk) && matches!(chain.end, End::Terminated))
            || chain
                .layers
                .last()
                .is_some_and(|layer| matches!(layer.source.location, Location::Dir(_))),
        filters: disk
            .throttle
            .iter()
            .filter(|_| is_new)
            .map(|name| Filter {
                index: next(),
                name,
                group: groups.iter().find(|group| group.name == *name),
            })
            .collect(),
    })
}

/// Whether libvirt looks at nothing below what the XML gives, since the active layer could have nothing below it.
fn is_blind(disk: &Disk) -> bool {
    let format = disk.active().and_then(|layer| layer.format);
    let has_backing = format.is_some_and(Format::can_have_backing);
    disk.layers.len() > 1 && disk.below == Below::Unsaid && !has_backing
}

/// A data file that the XML gives. libvirt reads `<readonly/>` after it, so that of a read-only disk is opened for
/// writing.
fn given_store(store: &XmlLayer, readonly: bool, next: &mut impl FnMut() -> u32) -> Option<RunningStore> {
    Some(RunningStore {
        source: store.source()?.clone(),
        details: while_running(&store.details, store.source()?, false),
        index: next(),
        readonly,
    })
}

/// What `<source>` says once the guest runs: libvirt has decided about TLS, and knows no policy but the active layer's.
fn while_running(details: &Details, source: &Source, active: bool) -> Details {
    let is_nbd = source
        .network()
        .is_some_and(|network| network.protocol == Protocol::Nbd);
    Details {
        tls: details.tls.or(is_nbd.then_some(false)),
        startup_policy: details.startup_policy.clone().filter(|_| active),
        ..details.clone()
    }
}

/// What was detected: the data file of the last layer that the XML gives, unless it closes the chain, and what is below.
fn found(disk: &mut Running<'_>, chain: &Chain, generation: Generation, next: &mut impl FnMut() -> u32) {
    if is_blind(disk.disk) {
        return;
    }
    let given = disk.layers.len();
    let closed = matches!(disk.disk.below, Below::Closed(_));
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
        let file = layer.data_file.as_ref().filter(|_| generation == Generation::V11);
        let source = file?.source.clone()?;
        Some(RunningStore {
            details: while_running(&details, &source, false),
            source,
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
            // An ISO image is raw to QEMU.
            Format::Iso => Format::Raw,
            format => format,
        };
        disk.layers.push(RunningLayer {
            source: layer.source.clone(),
            format,
            details: while_running(&details, &layer.source, false),
            cache_size: None,
            index,
            store: store(layer, true, next),
        });
    }
}
