//! Persistent bitmaps as QEMU sees them, and after a cut.

#![cfg(test)]

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use catena_engine::qcow2::bitmap::{BitmapError, Bitmaps, Bits, Ground, NewBitmap, Recorder, Run, stored};
use catena_engine::qcow2::check::CheckOptions;
use catena_engine::qcow2::metadata::shrink;
use catena_engine::{Disk, ErrorKind, GuestOffset, Qcow2Disk, Result, StorageBytes, Unmap, WritableDisk};
use catena_format::Bytes;
use catena_format::qcow2::{Bitmap, Header, RefcountWidth, refcount, rewrite};
use catena_storage::{LocalFile, Storage};
use catena_testkit::storage::{Content, Log, Shared};
use catena_testkit::{Dice, Folder};

/// The plainest image to keep bitmaps in: refcounts are changed on disk at once, and what is freed is not used again.
struct Plain {
    storage: Arc<dyn Storage>,
    header: Mutex<Header>,
    end: Mutex<u64>,
}

impl Plain {
    fn new(storage: Arc<dyn Storage>) -> Self {
        let header = Header::read(&StorageBytes::new(&*storage).unwrap()).unwrap();
        let end = storage
            .len()
            .unwrap()
            .next_multiple_of(header.cluster_bits.size());
        Self {
            storage,
            header: Mutex::new(header),
            end: Mutex::new(end),
        }
    }

    /// The first refcount block, which counts everything in images as small as these, and where it is.
    fn block(&self) -> (Vec<u8>, u64) {
        let header = self.header();
        let mut entry = [0; 8];
        self.storage
            .read_at(&mut entry, header.refcount_table_offset)
            .unwrap();
        let place = refcount::block_offset(u64::from_be_bytes(entry), header.cluster_bits)
            .unwrap()
            .unwrap();
        let mut block = vec![0; header.cluster_bits.size() as usize];
        self.storage.read_at(&mut block, place).unwrap();
        (block, place)
    }

    fn count(&self, run: Run, value: u64) {
        let header = self.header();
        let size = header.cluster_bits.size();
        let width = RefcountWidth::of(&header);
        let (mut block, place) = self.block();
        for cluster in run.offset / size..run.offset / size + run.clusters {
            assert_eq!(width.get(&block, cluster), Some(1 - value));
            width.set(&mut block, cluster, value).unwrap();
        }
        self.storage.write_all_at(&block, place).unwrap();
    }
}

impl Ground for Plain {
    fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    fn header(&self) -> Header {
        self.header.lock().unwrap().clone()
    }

    fn allocate(&self, clusters: u64) -> Result<u64> {
        let mut end = self.end.lock().unwrap();
        let offset = *end;
        *end += clusters * self.header().cluster_bits.size();
        self.count(Run { offset, clusters }, 1);
        Ok(offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        Ok(self.storage.write_all_at(bytes, offset)?)
    }

    fn sync(&self) -> Result<()> {
        Ok(self.storage.flush()?)
    }

    fn switch(&self, header: &Header) -> Result<()> {
        let old = self.header();
        let bytes = StorageBytes::new(&*self.storage)?;
        let area = bytes.read_exact(0, old.cluster_bits.size() as usize)?;
        for (offset, bytes) in rewrite::plan(&area, &old, header)? {
            self.storage.write_all_at(&bytes, offset)?;
            self.storage.flush()?;
        }
        *self.header.lock().unwrap() = header.clone();
        Ok(())
    }

    fn free(&self, run: Run) -> Result<()> {
        self.count(run, 0);
        Ok(())
    }
}

/// A new image of QEMU's.
fn image(folder: &Folder, options: &str) -> Content {
    folder.img(&format!("create -q -f qcow2 {options} image.qcow2 8M"));
    load(folder)
}

fn load(folder: &Folder) -> Content {
    let path = folder.file("image.qcow2");
    Content::read_from(&LocalFile::from_file(File::open(&path).unwrap(), &path).unwrap()).unwrap()
}

fn plain(content: Content) -> (Arc<Shared>, Plain) {
    let shared = Arc::new(Shared::from(content));
    (Arc::clone(&shared), Plain::new(shared))
}

fn new_bitmap(name: &str) -> NewBitmap {
    NewBitmap {
        name: name.to_owned(),
        granularity: None,
        enabled: true,
    }
}

fn edit<T>(
    ground: &dyn Ground,
    change: impl FnOnce(&mut Bitmaps) -> std::result::Result<T, BitmapError>,
) -> T {
    let mut bitmaps = Bitmaps::read(ground).unwrap();
    let value = change(&mut bitmaps).unwrap();
    bitmaps.store(ground).unwrap();
    value
}

fn bits_of(ground: &dyn Ground, name: &str) -> Bits {
    let header = ground.header();
    let bitmaps = stored::list(&header, ground.storage()).unwrap();
    let bitmap = bitmaps.iter().find(|bitmap| bitmap.name == name).unwrap();
    stored::load(bitmap, &header, ground.storage()).unwrap()
}

/// What QEMU says is dirty in a bitmap of the folder's image.
fn dirty_by_qemu(folder: &Folder, name: &str) -> Vec<Range<u64>> {
    let map = format!("--map=qemu:dirty-bitmap:{name}");
    let words = [
        "--json",
        &map,
        "--",
        "[",
        "qemu-nbd",
        "-r",
        "-f",
        "qcow2",
        "-B",
        name,
        "image.qcow2",
        "]",
    ];
    let said = folder.run("nbdinfo", &words);
    let extents: Vec<serde_json::Value> = serde_json::from_str(&said).unwrap();
    let mut dirty: Vec<Range<u64>> = Vec::new();
    for extent in extents {
        let start = extent["offset"].as_u64().unwrap();
        let end = start + extent["length"].as_u64().unwrap();
        match (extent["type"].as_u64().unwrap(), dirty.last_mut()) {
            (0, _) => {}
            (_, Some(last)) if last.end == start => last.end = end,
            _ => dirty.push(start..end),
        }
    }
    dirty
}

fn ranges(bits: &Bits) -> Vec<Range<u64>> {
    bits.ranges().collect()
}

/// What `qemu-img info` says of the bitmaps.
fn listed_by_qemu(folder: &Folder) -> Vec<(String, u64, Vec<String>)> {
    let info: serde_json::Value =
        serde_json::from_str(&folder.img("info --output=json image.qcow2")).unwrap();
    let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array();
    let strings = |value: &serde_json::Value| {
        let list = value.as_array().unwrap().iter();
        list.map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let bitmaps = bitmaps.map(Vec::as_slice).unwrap_or_default().iter();
    bitmaps
        .map(|bitmap| {
            let name = bitmap["name"].as_str().unwrap().to_owned();
            (
                name,
                bitmap["granularity"].as_u64().unwrap(),
                strings(&bitmap["flags"]),
            )
        })
        .collect()
}

#[test]
fn qemu_finds_the_bitmaps_and_their_bits() {
    for options in [
        "-o cluster_size=512",
        "-o cluster_size=4k,refcount_bits=1",
        "-o cluster_size=64k",
        "-o cluster_size=2M,refcount_bits=64",
        "-o extended_l2=on",
        // Without room in sector 0, and with a name behind the extensions.
        "-b some-base-image-with-a-long-name.qcow2 -F qcow2",
    ] {
        let folder = Folder::new();
        folder.img("create -q -f qcow2 some-base-image-with-a-long-name.qcow2 8M");
        let (shared, ground) = plain(image(&folder, options));
        let fine = NewBitmap {
            granularity: Some(512),
            enabled: false,
            ..new_bitmap("fine")
        };
        edit(&ground, |bitmaps| {
            bitmaps.add(&new_bitmap("auto"))?;
            bitmaps.add(&fine)
        });
        let mut bits = Bits::new(8 << 20, 512);
        for start in [0, 512 * 77, 5 << 20, (8 << 20) - 1] {
            bits.set(start..start + 5000);
        }
        edit(&ground, |bitmaps| {
            bitmaps.merge("auto", &bits, &ground)?;
            bitmaps.merge("fine", &bits, &ground)
        });
        shared.content().save(&folder.file("image.qcow2")).unwrap();
        let granularity = ground.header().cluster_bits.size().clamp(4096, 65536);
        assert_eq!(
            listed_by_qemu(&folder),
            [
                ("auto".to_owned(), granularity, vec!["auto".to_owned()]),
                ("fine".to_owned(), 512, vec![])
            ],
            "{options}"
        );
        folder.img("check -q image.qcow2");
        for name in ["auto", "fine"] {
            assert_eq!(dirty_by_qemu(&folder, name), ranges(&bits_of(&ground, name)));
        }
        assert_eq!(bits_of(&ground, "fine"), bits);
        edit(&ground, |bitmaps| {
            bitmaps.clear("fine")?;
            bitmaps.enable("fine", true)?;
            bitmaps.enable("auto", false)
        });
        shared.content().save(&folder.file("image.qcow2")).unwrap();
        folder.img("check -q image.qcow2");
        assert_eq!(dirty_by_qemu(&folder, "fine"), []);
        assert_eq!(listed_by_qemu(&folder)[1].2, ["auto"]);
        edit(&ground, |bitmaps| {
            bitmaps.remove("auto")?;
            bitmaps.remove("fine")
        });
        shared.content().save(&folder.file("image.qcow2")).unwrap();
        folder.img("check -q image.qcow2");
        assert!(listed_by_qemu(&folder).is_empty());
    }
}

#[test]
fn bitmaps_of_qemu_are_read_and_go_on() {
    let folder = Folder::new();
    image(&folder, "-o cluster_size=512");
    folder.img("bitmap --add -g 512 image.qcow2 b0");
    folder.io(
        "qcow2",
        "image.qcow2",
        &["write 0 64k", "write 3M 1", "discard 6M 1M"],
    );
    let before = dirty_by_qemu(&folder, "b0");
    let (shared, ground) = plain(load(&folder));
    assert_eq!(ranges(&bits_of(&ground, "b0")), before);
    // As a guest of ours would.
    let recorder = Recorder::read(&ground.header(), ground.storage())
        .unwrap()
        .unwrap();
    recorder.touch(1 << 20..(1 << 20) + 1, ground.storage()).unwrap();
    let directory = stored::list(&ground.header(), ground.storage()).unwrap();
    assert!(directory[0].in_use && directory[0].auto);
    shared.content().save(&folder.file("image.qcow2")).unwrap();
    assert_eq!(listed_by_qemu(&folder)[0].2, ["in-use", "auto"]);
    recorder.touch(65535..65537, ground.storage()).unwrap();
    recorder.close(&ground).unwrap();
    shared.content().save(&folder.file("image.qcow2")).unwrap();
    folder.img("check -q image.qcow2");
    let mut expected = bits_of(&ground, "b0");
    assert_eq!(dirty_by_qemu(&folder, "b0"), ranges(&expected));
    for range in before {
        expected.set(range);
    }
    assert_eq!(expected, bits_of(&ground, "b0"));
    assert!(expected.is_set(1 << 20) && expected.is_set(65536) && !expected.is_set(2 << 20));
    // And QEMU's guest after ours.
    folder.io("qcow2", "image.qcow2", &["write 2M 1"]);
    assert!(dirty_by_qemu(&folder, "b0").contains(&(2 << 20..(2 << 20) + 512)));
}

#[test]
fn a_bitmap_nobody_closed_can_only_be_removed() {
    let folder = Folder::new();
    let (shared, ground) = plain(image(&folder, "-o cluster_size=64k"));
    edit(&ground, |bitmaps| bitmaps.add(&new_bitmap("b0")));
    let recorder = Recorder::read(&ground.header(), ground.storage())
        .unwrap()
        .unwrap();
    recorder.touch(0..1, ground.storage()).unwrap();
    let mut bitmaps = Bitmaps::read(&ground).unwrap();
    for refused in [bitmaps.clear("b0"), bitmaps.enable("b0", false)] {
        assert!(matches!(refused, Err(BitmapError::Inconsistent(_))));
    }
    assert!(bitmaps.resize(1 << 20, &ground).is_err());
    // It records nothing, and stays as it is.
    assert!(
        Recorder::read(&ground.header(), ground.storage())
            .unwrap()
            .is_none()
    );
    edit(&ground, |bitmaps| bitmaps.add(&new_bitmap("b1")));
    shared.content().save(&folder.file("image.qcow2")).unwrap();
    assert_eq!(listed_by_qemu(&folder)[0].2, ["in-use", "auto"]);
    edit(&ground, |bitmaps| bitmaps.remove("b0"));
    shared.content().save(&folder.file("image.qcow2")).unwrap();
    folder.img("check -q image.qcow2");
    assert_eq!(listed_by_qemu(&folder).len(), 1);
}

#[test]
fn refuses_what_qemu_refuses() {
    let folder = Folder::new();
    let (_, ground) = plain(image(&folder, "-o cluster_size=64k"));
    let mut bitmaps = Bitmaps::read(&ground).unwrap();
    bitmaps.add(&new_bitmap("b0")).unwrap();
    let kinds = [
        (new_bitmap("b0"), ErrorKind::Conflict),
        (new_bitmap(""), ErrorKind::Unsupported),
        (new_bitmap(&"x".repeat(1024)), ErrorKind::TooLarge),
        (
            NewBitmap {
                granularity: Some(256),
                ..new_bitmap("b1")
            },
            ErrorKind::Unsupported,
        ),
        (
            NewBitmap {
                granularity: Some(1 << 32),
                ..new_bitmap("b1")
            },
            ErrorKind::Unsupported,
        ),
    ];
    for (new, kind) in kinds {
        let error: catena_engine::Error = bitmaps.add(&new).unwrap_err().into();
        assert_eq!(error.kind(), kind, "{error}");
    }
    assert!(matches!(bitmaps.remove("b1"), Err(BitmapError::NotFound(_))));
    let other = Bits::new(1 << 20, 512);
    assert!(matches!(
        bitmaps.merge("b0", &other, &ground),
        Err(BitmapError::DifferentSizes {
            target: 8_388_608,
            from: 1_048_576
        })
    ));
    let (_, old) = plain(image(&folder, "-o compat=0.10"));
    let mut bitmaps = Bitmaps::read(&old).unwrap();
    assert!(matches!(
        bitmaps.add(&new_bitmap("b0")),
        Err(BitmapError::Version2)
    ));
}

#[test]
fn a_resized_disk_keeps_its_bits_and_gains_clean_ones() {
    let folder = Folder::new();
    let (_, ground) = plain(image(&folder, "-o cluster_size=512"));
    edit(&ground, |bitmaps| bitmaps.add(&new_bitmap("b0")));
    let mut all = Bits::new(8 << 20, 512);
    all.set_all();
    edit(&ground, |bitmaps| bitmaps.merge("b0", &all, &ground));
    let mut bitmaps = Bitmaps::read(&ground).unwrap();
    bitmaps.resize(3 << 20, &ground).unwrap();
    bitmaps.resize(20 << 20, &ground).unwrap();
    let bits = bitmaps.bits("b0", &ground).unwrap();
    assert_eq!((bits.size(), bits.dirty_bytes()), (20 << 20, 3 << 20));
    let written = bitmaps.write(&ground).unwrap();
    assert!(written.extension.is_some() && !written.freed.is_empty());
}

/// The names of the bitmaps and what is dirty in them; for one that is in use nothing can be said.
fn state(ground: &Plain) -> Vec<(String, Option<Vec<Range<u64>>>)> {
    let header = ground.header();
    let width = RefcountWidth::of(&header);
    let (block, _) = ground.block();
    let counted = |run: Run| {
        let first = run.offset / header.cluster_bits.size();
        for cluster in first..first + run.clusters {
            assert_eq!(width.get(&block, cluster), Some(1), "a cluster in use is free");
        }
    };
    let mut seen = Vec::new();
    for bitmap in stored::list(&header, ground.storage()).unwrap() {
        for run in stored::clusters(&bitmap, header.cluster_bits, ground.storage()).unwrap() {
            counted(run);
        }
        let bits =
            (!bitmap.in_use).then(|| ranges(&stored::load(&bitmap, &header, ground.storage()).unwrap()));
        seen.push((bitmap.name, bits));
    }
    if let Some(extension) = header.bitmaps() {
        counted(Run {
            offset: extension.directory_offset,
            clusters: header.cluster_bits.clusters(extension.directory_size),
        });
    }
    seen
}

#[test]
fn after_a_cut_the_bitmaps_are_the_old_ones_or_the_new_ones() {
    let mut cuts = 0;
    for options in ["-o cluster_size=4k", "-o cluster_size=512", "-o cluster_size=64k"] {
        let folder = Folder::new();
        let log = Log::new();
        let recording = Arc::new(log.recording(image(&folder, options)));
        let ground = Plain::new(recording);
        let mut dice = Dice::new(9);
        let mut states = vec![state(&ground)];
        for step in 0..40 {
            let mut bits = Bits::new(8 << 20, 512);
            let start = dice.below(8 << 20);
            bits.set(start..start + dice.below(1 << 20));
            let names: Vec<String> = state(&ground).into_iter().map(|(name, _)| name).collect();
            let some = names.get(dice.index(names.len())).cloned();
            let kind = dice.below(4);
            edit(&ground, |bitmaps| match (kind, some.as_deref()) {
                (0, Some(name)) if names.len() > 2 => bitmaps.remove(name),
                (1, Some(name)) => bitmaps.clear(name),
                (2 | 3, Some(name)) => bitmaps.merge(name, &bits, &ground),
                _ => bitmaps.add(&NewBitmap {
                    granularity: Some(512),
                    ..new_bitmap(&format!("bitmap number {step}"))
                }),
            });
            states.push(state(&ground));
            log.reached(states.len() as u64 - 1);
        }
        for cut in log.cuts(1, 4000) {
            let way = format!("{:?}", cut.way);
            let (_, found) = plain(cut.files.into_iter().next().unwrap());
            let reached = cut.reached.unwrap_or(0) as usize;
            let seen = state(&found);
            assert!(
                states[reached..].iter().take(2).any(|state| *state == seen),
                "{way}: {seen:?} after step {reached}"
            );
            cuts += 1;
        }
    }
    assert!(cuts > 9000, "{cuts}");
}

#[test]
fn after_a_cut_a_recording_bitmap_is_the_old_one_the_new_one_or_not_believed() {
    let folder = Folder::new();
    image(&folder, "-o cluster_size=512");
    folder.img("bitmap --add -g 512 image.qcow2 b0");
    folder.img("bitmap --add -g 4096 image.qcow2 b1");
    let log = Log::new();
    let ground = Plain::new(Arc::new(log.recording(load(&folder))));
    let old = state(&ground);
    let recorder = Recorder::read(&ground.header(), ground.storage())
        .unwrap()
        .unwrap();
    recorder.touch(1000..2000, ground.storage()).unwrap();
    log.reached(1);
    recorder.touch(2 << 20..3 << 20, ground.storage()).unwrap();
    recorder.close(&ground).unwrap();
    log.reached(2);
    let new = state(&ground);
    let mut kinds = BTreeSet::new();
    for cut in log.cuts(1, 3000) {
        let (_, found) = plain(cut.files.into_iter().next().unwrap());
        for (seen, (before, after)) in state(&found).iter().zip(old.iter().zip(&new)) {
            let kind = match (cut.reached, &seen.1) {
                (_, None) => "in use",
                (None, _) if seen == before => "old",
                (Some(_), _) if seen == after => "new",
                _ => panic!("{seen:?} after {:?}", cut.reached),
            };
            kinds.insert(kind);
        }
    }
    assert_eq!(kinds, BTreeSet::from(["in use", "new", "old"]));
}

fn write(disk: &Qcow2Disk, offset: u64, len: usize) {
    disk.write_at(&vec![7; len], GuestOffset(offset)).unwrap();
}

#[test]
fn a_guest_of_ours_dirties_the_bitmaps_that_record() {
    for options in ["-o cluster_size=512", "-o cluster_size=64k", "-o extended_l2=on"] {
        let folder = Folder::new();
        image(&folder, options);
        folder.img("bitmap --add -g 512 image.qcow2 b0");
        folder.img("bitmap --add --disable -g 512 image.qcow2 b1");
        let shared = Arc::new(Shared::from(load(&folder)));
        let open = || Qcow2Disk::open(shared.clone(), None, None).unwrap();
        // Opening and reading changes nothing.
        open().close().unwrap();
        assert!(!listed(&shared)[0].in_use);
        let disk = open();
        write(&disk, 70_000, 1000);
        assert_eq!(
            listed(&shared)
                .iter()
                .map(|bitmap| bitmap.in_use)
                .collect::<Vec<_>>(),
            [true, false]
        );
        disk.write_zeroes(GuestOffset(1 << 20), 512, Unmap::Allow)
            .unwrap();
        disk.discard(GuestOffset(3 << 20), 1 << 20).unwrap();
        let cluster = 1 << disk.header().cluster_bits.get();
        for offset in (2 << 20..(2 << 20) + (1 << 16)).step_by(cluster) {
            disk.write_compressed(&vec![1; cluster], GuestOffset(offset))
                .unwrap();
        }
        disk.close().unwrap();
        shared.content().save(&folder.file("image.qcow2")).unwrap();
        folder.img("check -q image.qcow2");
        assert_eq!(
            dirty_by_qemu(&folder, "b0"),
            [
                69_632..71_168,
                1 << 20..(1 << 20) + 512,
                2 << 20..(2 << 20) + (1 << 16),
                3 << 20..4 << 20
            ],
        );
        assert_eq!(dirty_by_qemu(&folder, "b1"), []);
        // Edited on an image that is open, and written again through the same one.
        let disk = open();
        let mut bitmaps = Bitmaps::read(&disk).unwrap();
        bitmaps.clear("b0").unwrap();
        bitmaps.enable("b1", true).unwrap();
        bitmaps.store(&disk).unwrap();
        write(&disk, 0, 1);
        disk.close().unwrap();
        shared.content().save(&folder.file("image.qcow2")).unwrap();
        folder.img("check -q image.qcow2");
        for name in ["b0", "b1"] {
            let dirty = dirty_by_qemu(&folder, name);
            assert_eq!((dirty.len(), dirty[0].clone()), (1, 0..512));
        }
    }
}

fn listed(shared: &Shared) -> Vec<Bitmap> {
    let bytes = StorageBytes::new(shared).unwrap();
    stored::list(&Header::read(&bytes).unwrap(), shared).unwrap()
}

#[test]
fn a_disk_that_grows_keeps_its_bitmaps_as_qemu_does() {
    for (options, granularity, size) in [
        ("-o cluster_size=512", 512, 20 << 20),
        ("-o cluster_size=64k", 65536, 9 << 20),
        ("-o cluster_size=512", 512, (8 << 20) + 512),
    ] {
        let folder = Folder::new();
        image(&folder, options);
        folder.img(&format!("bitmap --add -g {granularity} image.qcow2 b0"));
        folder.img(&format!("bitmap --add --disable -g {granularity} image.qcow2 b1"));
        folder.io("qcow2", "image.qcow2", &["write 1M 1", "write 8388607 1"]);
        let shared = Arc::new(Shared::from(load(&folder)));
        let disk = Qcow2Disk::open(shared.clone(), None, None).unwrap();
        write(&disk, 2 << 20, 1);
        disk.grow(size).unwrap();
        write(&disk, size - 1, 1);
        disk.close().unwrap();
        folder.img(&format!("resize -q image.qcow2 {size}"));
        folder.io(
            "qcow2",
            "image.qcow2",
            &["write 2M 1", &format!("write {} 1", size - 1)],
        );
        let theirs = dirty_by_qemu(&folder, "b0");
        shared.content().save(&folder.file("image.qcow2")).unwrap();
        folder.img("check -q image.qcow2");
        assert_eq!(dirty_by_qemu(&folder, "b0"), theirs);
        assert_eq!(dirty_by_qemu(&folder, "b1"), []);
        assert_eq!(listed_by_qemu(&folder).len(), 2);
    }
}

#[test]
fn a_disk_with_an_inconsistent_bitmap_does_not_grow() {
    let folder = Folder::new();
    let (shared, ground) = plain(image(&folder, "-o cluster_size=64k"));
    edit(&ground, |bitmaps| bitmaps.add(&new_bitmap("b0")));
    let recorder = Recorder::read(&ground.header(), ground.storage())
        .unwrap()
        .unwrap();
    recorder.touch(0..1, ground.storage()).unwrap();
    let disk = Qcow2Disk::open(shared, None, None).unwrap();
    assert_eq!(disk.grow(16 << 20).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(disk.size(), 8 << 20);
    write(&disk, 0, 10);
}

#[test]
fn a_disk_that_shrinks_keeps_its_bitmaps_as_qemu_does() {
    for (options, size) in [
        ("-o cluster_size=512", 3 << 20),
        ("-o cluster_size=64k", (5 << 20) + 512),
    ] {
        let folder = Folder::new();
        image(&folder, options);
        folder.img("bitmap --add -g 512 image.qcow2 b0");
        folder.img("bitmap --add --disable -g 64k image.qcow2 b1");
        folder.io(
            "qcow2",
            "image.qcow2",
            &["write 1M 1", "write 5M 100k", "write 8388607 1"],
        );
        let shared = Arc::new(Shared::from(load(&folder)));
        shrink(&*shared, size, &CheckOptions::default()).unwrap();
        folder.img(&format!("resize -q --shrink image.qcow2 {size}"));
        folder.img("resize -q image.qcow2 8M");
        let theirs = dirty_by_qemu(&folder, "b0");
        let disk = Qcow2Disk::open(shared.clone(), None, None).unwrap();
        disk.grow(8 << 20).unwrap();
        disk.close().unwrap();
        shared.content().save(&folder.file("image.qcow2")).unwrap();
        folder.img("check -q image.qcow2");
        assert_eq!(dirty_by_qemu(&folder, "b0"), theirs);
        assert_eq!(listed_by_qemu(&folder).len(), 2);
    }
}
