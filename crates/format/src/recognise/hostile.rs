//! Whatever the bytes are: no panic, an end, and little read.

use super::tests::samples;
use super::*;
use crate::describe;
use proptest::prelude::*;
use std::cell::Cell;
use std::io;
use std::sync::OnceLock;

/// Most bytes that one look may read, one allocation included: a LUKS 2 header is the longest thing there is.
const MOST_READ: u64 = (4 << 20) + (64 << 10);

/// Bytes with some of them changed, that seem to go on to a length of their own, and that count what is read.
struct Hostile<'a> {
    bytes: &'a [u8],
    changes: &'a [(u64, u8)],
    /// The length; zeroes lie between the bytes and their last kibibyte, which stays at the end.
    len: u64,
    read: Cell<u64>,
}

const TAIL: u64 = 1024;

impl<'a> Hostile<'a> {
    fn new(bytes: &'a [u8], changes: &'a [(u64, u8)], len: u64) -> Self {
        Self {
            bytes,
            changes,
            len,
            read: Cell::new(0),
        }
    }

    fn byte(&self, offset: u64) -> u8 {
        let held = self.bytes.len() as u64;
        // In a longer image the end moves, so that what is found from the end still is.
        let from_end = self.len - offset;
        let at = match self.len > held && from_end <= TAIL.min(held) {
            true => held - from_end,
            false => offset,
        };
        if let Some((_, value)) = self.changes.iter().find(|(changed, _)| *changed == at) {
            return *value;
        }
        self.bytes.get(at as usize).copied().unwrap_or(0)
    }
}

impl Bytes for Hostile<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        for (i, byte) in buf.iter_mut().take(n).enumerate() {
            *byte = self.byte(offset + i as u64);
        }
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

/// Looks at an image in every way there is; each look reads a bounded amount.
fn look_every_way(bytes: &Hostile<'_>) {
    let bounded = |what: &str| {
        assert!(
            bytes.read.replace(0) <= MOST_READ,
            "{what} reads more than {MOST_READ} bytes"
        );
    };
    for format in Format::ALL {
        if let Ok(description) = describe(format, bytes) {
            assert!(description.virtual_size.unwrap_or(0) <= crate::limits::VIRTUAL_SIZE);
            assert!(description.oddities.len() < 100 && description.features.len() < 100);
        }
        bounded(format.as_str());
    }
    let _ = vmdk::descriptor(bytes);
    bounded("descriptor");
    recognise(bytes).unwrap();
    bounded("recognise");
    probe_as_libvirt(bytes).unwrap();
    probe_as_qemu(bytes, Some("x.dmg")).unwrap();
    bounded("probes");
}

/// The samples, and where in them something is written.
fn written() -> &'static [(Vec<u8>, Vec<u64>)] {
    static WRITTEN: OnceLock<Vec<(Vec<u8>, Vec<u64>)>> = OnceLock::new();
    WRITTEN.get_or_init(|| {
        samples()
            .into_iter()
            .map(|(_, bytes, ..)| {
                let places = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0);
                let places = places.map(|(at, _)| at as u64).collect();
                (bytes, places)
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        look_every_way(&Hostile::new(&bytes, &[], bytes.len() as u64));
    }

    #[test]
    fn random_bytes_behind_a_real_start_are_survived(
        sample in 0..samples().len(),
        kept in 4usize..128,
        bytes in prop::collection::vec(any::<u8>(), 0..2048),
    ) {
        let (start, _) = &written()[sample];
        let start = &start[..kept.min(start.len())];
        let bytes = [start, &bytes].concat();
        look_every_way(&Hostile::new(&bytes, &[], bytes.len() as u64));
    }

    #[test]
    fn changed_and_cut_images_are_survived(
        sample in 0..samples().len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), -8i64..24, any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let (bytes, places) = &written()[sample];
        let changes: Vec<(u64, u8)> = changes
            .into_iter()
            .map(|(place, shift, value)| (place.get(places).saturating_add_signed(shift), value))
            .collect();
        let len = cut.map_or(bytes.len(), |cut| cut.index(bytes.len()));
        look_every_way(&Hostile::new(bytes, &changes, len as u64));
    }
}

#[test]
fn an_image_of_a_pebibyte_costs_no_more_than_a_small_one() {
    for (format, bytes, ..) in samples() {
        let huge = Hostile::new(&bytes, &[], 1 << 50);
        look_every_way(&huge);
        assert_eq!(recognise(&huge).unwrap(), [format]);
        huge.read.set(0);
        let _ = describe(format, &huge);
        let most = match format {
            // Two region tables, the metadata and the two headers.
            Format::Vhdx => 256 << 10,
            // libvirt's window, and the descriptor file as far as it may go.
            Format::Vmdk => 2 << 20,
            _ => 64 << 10,
        };
        assert!(huge.read.get() <= most, "{format} reads {}", huge.read.get());
    }
}

#[test]
fn numbers_of_all_ones_everywhere_are_survived() {
    for (bytes, _) in written() {
        for field in (0..640u64).step_by(4) {
            let changes: Vec<(u64, u8)> = (field..field + 8).map(|at| (at, 0xff)).collect();
            look_every_way(&Hostile::new(bytes, &changes, bytes.len() as u64));
        }
    }
}
