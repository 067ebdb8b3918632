//! libvirt's XML: read, and changed where it could be read.
#![no_main]

use catena::reference::Source;
use catena_format::Format;
use catena_fuzz::plant;
use catena_virt::edit::Edit;
use catena_virt::{Document, limits};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

const SEEDS: [&str; 5] = [
    "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/i/a' index='1'><dataStore type='file'>\
     <format type='raw'/><source file='/i/d'/></dataStore></source><backingStore type='block'><format type='raw'/>\
     <source dev='/dev/x'/><backingStore/></backingStore><target dev='vda' bus='virtio'/></disk>",
    "<domain><name>v</name><devices><disk type='network'><driver type='raw'/><source protocol='https' name='n' query='q'>\
     <host name='h' port='1'/><ssl verify='no'/><cookies><cookie name='a'>b</cookie></cookies><timeout seconds='1'/>\
     </source><target dev='sda'/></disk></devices></domain>",
    "<disk type='nvme'><source type='pci' namespace='1'><address bus='1'/></source><target dev='vda'/></disk>",
    "<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='/n'/></disk></disks></domainsnapshot>",
    "<volume><name>v</name><capacity unit='G'>1</capacity><backingStore><path>/b</path></backingStore></volume>",
];

fuzz_target!(
    init: plant(SEEDS.iter().enumerate().map(|(n, text)| (n.to_string(), text.as_bytes().to_vec()))),
    |text: &str| {
        let Ok(document) = Document::parse(text) else { return };
        for disk in &document.disks {
            assert!((1..=limits::MAX_LAYERS).contains(&disk.layers.len()));
            assert!(text.get(disk.span.clone()).is_some_and(|disk| disk.starts_with("<disk")));
            let mut edit = Edit::new(&document);
            edit.strip(disk);
            let stripped = edit.finish().expect("one change contradicts no other");
            let again = Document::parse(stripped.as_str()).expect("what is left is a document");
            assert_eq!(again.disks.len(), document.disks.len());
            let mut edit = Edit::new(&again);
            for disk in &again.disks {
                if edit.set_backing(disk, 0, Some((&Source::file("/x'y"), Format::Raw))).is_err() {
                    return;
                }
            }
            let set = edit.finish().expect("disks do not overlap");
            Document::parse(set.as_str()).expect("what was put there is XML");
        }
        let mut edit = Edit::new(&document);
        if edit.relocate(Path::new("/"), Path::new("/else")).is_ok() {
            let moved = edit.finish().expect("paths do not overlap");
            Document::parse(moved.as_str()).expect("paths are attributes");
        }
    }
);
