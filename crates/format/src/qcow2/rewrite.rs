//! How a header changes without a moment of danger.
//!
//! A disk writes a sector whole or not at all, and nothing larger. So a change is a list of writes, each to be made
//! durable before the next, in which every write either touches bytes that nobody refers to, or is one sector:
//!
//! 1. A new backing name goes to a place in the first cluster that is free, then sector 0 points at it.
//! 2. Where extensions move that lie behind sector 0, the header first grows over them: a copy of the new extensions
//!    is put behind everything, sector 0 says that the header reaches up to it, the extensions are written to where
//!    they belong, and sector 0 says that the header ends where it did.

use super::extension::Extension;
use super::header::{Header, Version};
use crate::error::{Error, Result};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// A write of the plan: an offset and the bytes that go there.
pub type Write = (u64, Vec<u8>);

/// Plans the change from `old` to `new`: writes in order, each durable before the next.
///
/// `area` is the first cluster as it is on disk. The backing name's offset in `new` does not count: the plan finds a
/// place for it. Tables are not moved. Where the first cluster is too small for everything, the feature names go: they
/// are a courtesy.
pub fn plan(area: &[u8], old: &Header, new: &Header) -> Result<Vec<Write>> {
    new.check_extensions()?;
    plan_all(area, old, new).or_else(|error| {
        let mut nameless = new.clone();
        nameless
            .extensions
            .retain(|extension| !matches!(extension, Extension::FeatureNames(_)));
        match nameless.extensions.len() < new.extensions.len() {
            true => plan_all(area, old, &nameless),
            false => Err(error),
        }
    })
}

fn plan_all(area: &[u8], old: &Header, new: &Header) -> Result<Vec<Write>> {
    let cluster_size = usize::try_from(new.cluster_bits.size()).unwrap_or(usize::MAX);
    let name = new
        .backing
        .as_ref()
        .map(|backing| backing.name.as_slice())
        .unwrap_or_default();
    let bare = encode_without_name(new)?;
    if bare.len() > cluster_size {
        return Err(Error::too_large("the header does not fit in the first cluster"));
    }
    // All in one sector: one write.
    if bare.len() + name.len() <= SECTOR.min(cluster_size) {
        let place = if name.is_empty() { 0 } else { bare.len() };
        let mut sector = with_name_at(&bare, place, name)?;
        sector.extend_from_slice(name);
        sector.resize(SECTOR.min(cluster_size), 0);
        return Ok(vec![(0, sector)]);
    }
    let extensions_end = old_extensions_end(old)?;
    let old_name = old
        .backing
        .as_ref()
        .map(|backing| (offset(backing.offset), offset(backing.end())));
    let live_end = old_name
        .map_or(extensions_end, |(_, end)| end.max(extensions_end))
        .min(cluster_size);

    let behind_sector_0 = |bytes: &[u8]| bytes.get(SECTOR..).unwrap_or_default().to_vec();
    let moved = behind_sector_0(&bare)
        != area
            .get(SECTOR.min(extensions_end)..extensions_end)
            .unwrap_or_default();
    if bare.len() <= SECTOR || !moved {
        let place = free_place(bare.len().max(extensions_end), old_name, name.len(), cluster_size)?;
        let mut start = with_name_at(&bare, place, name)?;
        if !name.is_empty() && place < SECTOR {
            // A name that begins in sector 0 is written with it, too: the sector is written as a whole.
            start.resize(place, 0);
            start.extend_from_slice(name);
        }
        let sector = sector_0(&start);
        let name_write = (!name.is_empty()).then(|| (place as u64, name.to_vec()));
        let home = name_home(&bare, place, name)?;
        return Ok(name_write.into_iter().chain([(0, sector)]).chain(home).collect());
    }
    if new.version == Version::V2 {
        // No field says where a version 2 header ends, so it cannot grow; such a header has a name as its only
        // extension and fits a sector, unless somebody added others.
        return Err(Error::unsupported(
            "the extensions of this version 2 header cannot be moved safely",
        ));
    }

    let header_len = header_length(&bare, new.version)?;
    let extensions = bare.get(header_len..).unwrap_or_default();
    let copy = bare.len().max(live_end).next_multiple_of(8);
    let place = copy + extensions.len();
    if place + name.len() > cluster_size {
        return Err(Error::too_large(
            "the first cluster has no room to change the header safely",
        ));
    }
    let behind = [extensions, name].concat();
    let ended = with_name_at(&bare, if name.is_empty() { 0 } else { place }, name)?;
    let mut grown = ended.get(..header_len).unwrap_or_default().to_vec();
    patch(
        &mut grown,
        100,
        &u32::try_from(copy).unwrap_or(u32::MAX).to_be_bytes(),
    );
    let writes = [
        (copy as u64, behind),
        (0, sector_0(&grown)),
        (SECTOR as u64, behind_sector_0(&bare)),
        (0, sector_0(&ended)),
    ];
    Ok(writes.into_iter().chain(name_home(&bare, place, name)?).collect())
}

/// Brings a name from `place`, where it is by now, to the end of the extensions, where others look for it. Nothing where it is
/// there already, or would lie over itself.
fn name_home(bare: &[u8], place: usize, name: &[u8]) -> Result<Vec<Write>> {
    let home = bare.len();
    if name.is_empty() || home + name.len() > place {
        return Ok(Vec::new());
    }
    let mut start = with_name_at(bare, home, name)?;
    start.extend_from_slice(name);
    Ok(vec![(home as u64, name.to_vec()), (0, sector_0(&start))])
}

/// Everything but the name, whose fields are zero.
fn encode_without_name(header: &Header) -> Result<Vec<u8>> {
    Header {
        backing: None,
        ..header.clone()
    }
    .encode()
}

/// Where the extensions of a header on disk end, their end mark included.
fn old_extensions_end(old: &Header) -> Result<usize> {
    let bare = encode_without_name(old)?;
    let extensions = bare.len().saturating_sub(header_length(&bare, old.version)?);
    Ok(old.header_length as usize + extensions)
}

/// How long the fixed part of a header is that has been encoded; a version 2 header has no field that says it.
fn header_length(bare: &[u8], version: Version) -> Result<usize> {
    if version == Version::V2 {
        return Ok(72);
    }
    let field = bare
        .get(100..104)
        .and_then(|field| field.try_into().ok())
        .map(u32::from_be_bytes);
    field
        .map(|length| length as usize)
        .ok_or_else(|| Error::invalid("the header is too short"))
}

/// The lowest place in the first cluster from `from` on where a name of that length overlaps no old one.
fn free_place(
    from: usize,
    old_name: Option<(usize, usize)>,
    len: usize,
    cluster_size: usize,
) -> Result<usize> {
    let overlaps = |place: usize| old_name.is_some_and(|(start, end)| place < end && start < place + len);
    let behind = old_name.map(|(_, end)| end.next_multiple_of(8).max(from));
    // Rather so far behind that it can come to the front afterwards.
    let far_behind = behind.map(|place| place.max((from + len).next_multiple_of(8)));
    [Some(from), far_behind, behind]
        .into_iter()
        .flatten()
        .find(|place| !overlaps(*place) && place + len <= cluster_size)
        .filter(|_| len > 0)
        .or((len == 0).then_some(0))
        .ok_or_else(|| Error::too_large("the first cluster has no room for the backing file name"))
}

fn with_name_at(bare: &[u8], place: usize, name: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = bare.to_vec();
    let length = u32::try_from(name.len()).map_err(|_| Error::too_large("backing file name too long"))?;
    patch(&mut bytes, 8, &(place as u64).to_be_bytes());
    patch(&mut bytes, 16, &length.to_be_bytes());
    Ok(bytes)
}

fn patch(bytes: &mut [u8], offset: usize, field: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(offset).zip(field) {
        *to = *from;
    }
}

fn sector_0(bytes: &[u8]) -> Vec<u8> {
    let mut sector = bytes.get(..SECTOR.min(bytes.len())).unwrap_or_default().to_vec();
    sector.resize(SECTOR, 0);
    sector
}

fn offset(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::create::{CreateOptions, NewImage};
    use super::super::extension::FeatureName;
    use super::super::header::{BackingName, ClusterBits};
    use super::super::stamp::Stamp;
    use super::*;

    /// Applies the plan, and after each write also every tearing of that write at sector boundaries.
    fn every_state(area: &[u8], writes: &[Write]) -> Vec<Vec<u8>> {
        let mut states = vec![area.to_vec()];
        let mut now = area.to_vec();
        for (offset, data) in writes {
            let offset = usize::try_from(*offset).unwrap();
            let first = offset / SECTOR;
            let last = (offset + data.len() - 1) / SECTOR;
            assert!(last - first < 8, "too many sectors to tear");
            let mut whole = now.clone();
            whole[offset..offset + data.len()].copy_from_slice(data);
            for torn in 0..1u32 << (last - first + 1) {
                let mut state = now.clone();
                for sector in (first..=last).filter(|sector| torn >> (sector - first) & 1 == 1) {
                    let range = sector * SECTOR..((sector + 1) * SECTOR).min(state.len());
                    state[range.clone()].copy_from_slice(&whole[range]);
                }
                states.push(state);
            }
            now = whole;
        }
        states
    }

    fn reference(area: &[u8]) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let header = Header::read(&area.to_vec()).unwrap();
        (
            header.backing.as_ref().map(|backing| backing.name.clone()),
            header.backing_format().map(<[u8]>::to_vec),
        )
    }

    fn change(header: &Header, name: &[u8], format: Option<&[u8]>) -> Header {
        let mut new = header.clone();
        new.extensions
            .retain(|extension| !matches!(extension, Extension::BackingFormat(_)));
        if let Some(format) = format {
            new.extensions
                .insert(0, Extension::BackingFormat(format.to_vec()));
        }
        new.backing = (!name.is_empty()).then(|| BackingName {
            offset: 0,
            name: name.to_vec(),
        });
        new
    }

    #[test]
    fn at_every_instant_the_reference_is_the_old_or_the_new_one() {
        let long = vec![b'x'; 1023];
        for bits in [12, 16] {
            let mut options = CreateOptions::new(1 << 20).unwrap();
            options.cluster_bits = ClusterBits::new(bits).unwrap();
            options.backing = Some((b"base.img".to_vec(), b"raw".to_vec()));
            let mut header = NewImage::lay_out(&options).unwrap().header;
            header.extensions.push(Extension::Unknown {
                kind: 0x1234_5678,
                data: vec![7; 400],
            });
            let mut area = header.encode().unwrap();
            area.resize(1 << bits, 0);
            // One change after the other on the same header.
            for (name, format) in [
                (b"a".as_slice(), Some(b"raw".as_slice())),
                (b"sub/folder/base.qcow2", None),
                (b"base.qcow2", Some(b"qcow2")),
                (&long, Some(b"qcow2")),
                (b"again", Some(b"a-format-of-some-length")),
                (b"", None),
                (b"back", Some(b"raw")),
            ] {
                let old = Header::read(&area).unwrap();
                let target = change(&old, name, format);
                let writes = plan(&area, &old, &target).unwrap();
                let (before, states) = (reference(&area), every_state(&area, &writes));
                let after = (
                    (!name.is_empty()).then(|| name.to_vec()),
                    format.map(<[u8]>::to_vec),
                );
                for state in &states {
                    let seen = reference(state);
                    assert!(
                        seen == before || seen == after,
                        "{seen:?} is neither {before:?} nor {after:?}"
                    );
                    let names =
                        |area: &[u8]| Header::read(&area.to_vec()).unwrap().extensions.last().cloned();
                    assert_eq!(names(state), names(&area), "the other extensions stay");
                }
                area = states.last().unwrap().clone();
                assert_eq!(reference(&area), after);
                let header = Header::read(&area).unwrap();
                assert_eq!((header.header_length, header.l1_offset), (112, old.l1_offset));
            }
        }
    }

    #[test]
    fn at_every_instant_a_stamp_is_whole_or_not_there_and_the_reference_stays() {
        let stamp = |taken| Stamp {
            virtual_size: 1 << 20,
            file_length: 1 << 18,
            modified: None,
            taken,
            reference: [1; 8],
            layout: [2; 16],
            tables: [3; 16],
            content: [4; 16],
            view: Some([5; 32]),
        };
        for (version, bits) in [
            (Version::V2, 12),
            (Version::V3, 9),
            (Version::V3, 12),
            (Version::V3, 16),
        ] {
            let longest = if bits == 9 { 200 } else { 1023 };
            for len in [4, longest] {
                let mut options = CreateOptions::new(1 << 20).unwrap();
                options.version = version;
                options.cluster_bits = ClusterBits::new(bits).unwrap();
                options.backing = Some((vec![b'b'; len], b"qcow2".to_vec()));
                let mut area = NewImage::lay_out(&options).unwrap().header.encode().unwrap();
                area.resize(1 << bits, 0);
                for next in [Some(stamp(1)), Some(stamp(2)), None, Some(stamp(3))] {
                    let old = Header::read(&area).unwrap();
                    let mut new = old.clone();
                    new.set_stamp(next.clone());
                    let writes = plan(&area, &old, &new).unwrap();
                    for state in every_state(&area, &writes) {
                        let header = Header::read(&state).unwrap();
                        assert!(header.stamp() == old.stamp() || header.stamp() == next.as_ref());
                        assert_eq!(reference(&state), reference(&area));
                    }
                    area = every_state(&area, &writes).pop().unwrap();
                    assert_eq!(Header::read(&area).unwrap().stamp(), next.as_ref());
                }
            }
        }
    }

    #[test]
    fn a_name_ends_up_right_behind_the_extensions() {
        let mut options = CreateOptions::new(1 << 20).unwrap();
        options.backing = Some((b"base.img".to_vec(), b"raw".to_vec()));
        let mut area = NewImage::lay_out(&options).unwrap().header.encode().unwrap();
        area.resize(1 << 16, 0);
        for (name, format) in [
            (b"first.img".as_slice(), b"raw".as_slice()),
            (b"a/longer/name.qcow2", b"a-longer-format"),
            (b"first.img", b"raw"),
        ] {
            let old = Header::read(&area).unwrap();
            let new = change(&old, name, Some(format));
            let writes = plan(&area, &old, &new).unwrap();
            area = every_state(&area, &writes).pop().unwrap();
            let backing = Header::read(&area).unwrap().backing.unwrap();
            let end = encode_without_name(&new).unwrap().len() as u64;
            assert_eq!((backing.offset, backing.name.as_slice()), (end, name));
        }
    }

    #[test]
    fn a_name_that_reaches_over_the_end_of_the_first_sector_stays_whole() {
        let mut options = CreateOptions::new(1 << 20).unwrap();
        options.cluster_bits = ClusterBits::new(12).unwrap();
        options.version = Version::V2;
        let new = NewImage::lay_out(&options).unwrap();
        let mut area = new.header.encode().unwrap();
        area.resize(4096, 0);
        for name in [vec![b'x'; 450], vec![b'y'; 1023], vec![b'z'; 430]] {
            let old = Header::read(&area).unwrap();
            let writes = plan(&area, &old, &change(&old, &name, Some(b"raw"))).unwrap();
            let (before, states) = (reference(&area), every_state(&area, &writes));
            let after = (Some(name), Some(b"raw".to_vec()));
            for state in &states {
                let seen = reference(state);
                assert!(seen == before || seen == after, "{seen:?}");
            }
            area = states.last().unwrap().clone();
            assert_eq!(reference(&area), after);
        }
    }

    #[test]
    fn a_name_is_not_put_over_the_extensions_of_a_version_2_header() {
        let mut options = CreateOptions::new(1 << 20).unwrap();
        options.cluster_bits = ClusterBits::new(12).unwrap();
        options.version = Version::V2;
        let mut header = NewImage::lay_out(&options).unwrap().header;
        let unknown = Extension::Unknown {
            kind: 7,
            data: vec![0xee; 400],
        };
        // Without the names everything fits the first sector, and the change leaves them out.
        let names = Extension::FeatureNames(FeatureName::all());
        header.extensions = vec![unknown.clone(), names];
        let mut area = header.encode().unwrap();
        area.resize(4096, 0);
        let old = Header::read(&area).unwrap();
        let writes = plan(&area, &old, &change(&old, &[b'x'; 40], Some(b"raw"))).unwrap();
        for state in every_state(&area, &writes) {
            let seen = Header::read(&state).unwrap().extensions;
            assert!(
                seen == old.extensions
                    || seen == [Extension::BackingFormat(b"raw".to_vec()), unknown.clone()]
            );
        }
    }

    #[test]
    fn a_header_that_nobody_would_read_is_not_planned() {
        let mut options = CreateOptions::new(1 << 20).unwrap();
        options.data_file = Some((b"data".to_vec(), true));
        let old = NewImage::lay_out(&options).unwrap().header;
        let area = vec![0; 1 << 16];
        assert!(plan(&area, &old, &change(&old, b"base", Some(b"raw"))).is_err());
    }

    #[test]
    fn clusters_of_one_sector_change_in_one_write() {
        let mut options = CreateOptions::new(1 << 20).unwrap();
        options.cluster_bits = ClusterBits::new(9).unwrap();
        let new = NewImage::lay_out(&options).unwrap();
        let mut area = new.header.encode().unwrap();
        area.resize(512, 0);
        let target = change(&new.header, b"base.img", Some(b"raw"));
        let writes = plan(&area, &new.header, &target).unwrap();
        assert_eq!(writes.len(), 1);
        assert_eq!(
            Header::read(&writes[0].1).unwrap().backing.unwrap().name,
            b"base.img"
        );
        assert!(
            plan(
                &area,
                &new.header,
                &change(&new.header, &[b'x'; 600], Some(b"raw"))
            )
            .is_err()
        );
    }
}
