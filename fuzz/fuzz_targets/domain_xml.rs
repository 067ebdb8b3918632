//! libvirt's XML: read, and changed where it could be read.
#![no_main]

use catena::reference::Source;
use catena_format::Format;
use catena_fuzz::plant;
use catena_virt::edit::Edit;
use catena_virt::{Below, Disk, Document, XmlErrorKind, limits};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

const SEEDS: [&str; 12] = [
    "<disk type='file'><driver name='qemu' type='qcow2'/><source file='/i/a' index='1'><dataStore type='file'>\
     <format type='raw'/><source file='/i/d'/></dataStore></source><backingStore type='block'><format type='raw'/>\
     <source dev='/dev/x'/><backingStore/></backingStore><target dev='vda' bus='virtio'/></disk>",
    "<domain><name>v</name><devices><disk type='network'><driver type='raw'/><source protocol='https' name='n' query='q'>\
     <host name='h' port='1'/><ssl verify='no'/><cookies><cookie name='a'>b</cookie></cookies><timeout seconds='1'/>\
     </source><target dev='sda'/></disk></devices></domain>",
    "<disk type='nvme'><source type='pci' namespace='1'><address bus='1'/></source><target dev='vda'/></disk>",
    "<domainsnapshot><disks><disk name='vda' snapshot='external'><source file='/n'/></disk></disks></domainsnapshot>",
    "<volume><name>v</name><capacity unit='G'>1</capacity><backingStore><path>/b</path></backingStore></volume>",
    "<?xml version='1.0'?>\r\n<domain>\r\n  <throttlegroups><throttlegroup><group_name>g</group_name><total_bytes_sec>1\
     </total_bytes_sec></throttlegroup></throttlegroups>\r\n  <devices>\r\n    <disk>\r\n      <source file=\"/i/a\"/>\r\n\
      \t<backingStore/>\r\n      <target dev='vda'/><throttlefilters><throttlefilter group='g'/></throttlefilters>\r\n\
     </disk>\r\n</devices></domain>",
    "<disk><!-- <source/> --><?p <disk>?><source\n file='/i/&#x61;&amp;b'\n><![CDATA[</source>]]></source ><backingStore\t/>\
     <target dev=\"vda\"/></disk >",
    "<disk type='volume' device='lun'><source pool='p' volume='v' mode='host'><reservations managed='no'><source type='unix' \
     path='/s' mode='client'/></reservations><seclabel model='dac' relabel='no'/></source><target dev='sda' bus='scsi'/></disk>",
    "<disk type='network'><source protocol='nfs' name='/n'><host name='h'/><identity user='+0' group='g'/><slices><slice \
     type='storage' offset='1' size='2'/></slices></source><target dev='vda'/></disk>",
    "<disk><driver type='qcow2'><metadata_cache><max_size unit='KiB'>4</max_size></metadata_cache></driver><source file='/a' \
     fdgroup='g' startupPolicy='optional'><encryption format='luks' engine='qemu'><secret type='passphrase' usage='u'/>\
     </encryption></source><mirror type='file' job='copy' ready='yes'><format type='raw'/><source file='/m'/></mirror>\
     <backingStore type='file'><format type='raw'/><source file='/b'/></backingStore><backingStore/><target dev='vda'/></disk>",
    "<disk type='network'><source protocol='rbd' name='p/i'><auth username='u'><secret type='ceph' uuid=\
     '11111111-2222-3333-4444-555555555555'/></auth><config file='/c'/><snapshot name='s'/></source><target dev='vda'/></disk>",
    "<domainsnapshot><name>s</name><domain><seclabel type='static' model='dac'><label>+0:+0</label></seclabel><devices><disk>\
     <source file='/a'/><target dev='vda'/><transient shareBacking='yes'/></disk></devices></domain></domainsnapshot>",
];

/// Whether a changed text is XML still; libvirt may refuse what it says.
fn changed(text: &str) -> Option<Document> {
    match Document::parse(text) {
        Ok(document) => Some(document),
        Err(error) => {
            assert_ne!(error.kind, XmlErrorKind::NotXml, "{error}: {text}");
            None
        }
    }
}

/// The layer that a change put there.
fn put(document: &Document, disk: usize, layer: usize) -> (Option<&Source>, Option<Format>) {
    let layer = document.disks.get(disk).and_then(|disk| disk.layers.get(layer));
    (
        layer.and_then(|layer| layer.source()),
        layer.and_then(|layer| layer.format),
    )
}

/// Without its chain, and with another one; the chains of all others stay.
fn rechained(document: &Document, number: usize, disk: &Disk) {
    let mut edit = Edit::new(document);
    edit.strip(disk);
    let stripped = edit.finish().expect("one change contradicts no other");
    let stripped = Document::parse(stripped).expect("what is left is a document");
    assert_eq!(stripped.disks.len(), document.disks.len());
    let mut edit = Edit::new(&stripped);
    let alone = stripped.disks.get(number).expect("it is still there");
    assert!(alone.layers.len() == 1 && alone.below == Below::Unsaid);
    edit.strip(alone);
    assert!(edit.is_empty());
    let new = Source::file("/x'y");
    if edit.set_backing(alone, 0, Some((&new, Format::Raw))).is_ok() {
        let set = edit.finish().expect("it is one change");
        let set = Document::parse(set).expect("what was put there is XML");
        assert_eq!(put(&set, number, 1), (Some(&new), Some(Format::Raw)));
    }
}

/// With another active image, and with one over it.
fn replaced(document: &Document, number: usize, disk: &Disk) {
    let new = Source::file("/new & \"x\"");
    for over in [false, true] {
        let mut edit = Edit::new(document);
        let done = if over {
            edit.put_over(disk, &new, Format::Qcow2)
        } else {
            edit.replace(disk, 0, Some(&new), Some(Format::Qcow2))
        };
        if done.is_ok()
            && let Some(after) = changed(&edit.finish().expect("no change contradicts another"))
        {
            let (source, format) = put(&after, number, 0);
            assert_eq!(source.and_then(Source::path), new.path());
            assert_eq!(format, Some(Format::Qcow2));
        }
    }
}

fuzz_target!(
    init: plant(SEEDS.iter().enumerate().map(|(n, text)| (n.to_string(), text.as_bytes().to_vec()))),
    |text: &str| {
        let Ok(document) = Document::parse(text) else { return };
        for (number, disk) in document.disks.iter().enumerate() {
            assert!((1..=limits::MAX_LAYERS).contains(&disk.layers.len()));
            assert!(text.get(disk.span.clone()).is_some_and(|disk| disk.starts_with("<disk")));
            rechained(&document, number, disk);
            replaced(&document, number, disk);
        }
        let mut edit = Edit::new(&document);
        if edit.relocate(Path::new("/"), Path::new("/else")).is_ok() {
            let moved = edit.finish().expect("paths do not overlap");
            Document::parse(moved.as_str()).expect("paths are attributes");
        }
    }
);
