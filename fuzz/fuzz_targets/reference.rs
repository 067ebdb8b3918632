//! What an overlay records about its backing image.
#![no_main]

use catena::reference::{Location, LostKind, Reading, Reference, Source, differs_from_qemu};
use catena_fuzz::plant;
use libfuzzer_sys::fuzz_target;

const SEEDS: [&str; 24] = [
    "base.qcow2",
    "/img/base.qcow2",
    "sub/a:b",
    "file:base.img",
    "host_device:/dev/sda",
    "fat:floppy:/dir",
    "nbd:localhost:10809:exportname=x",
    "nbd:unix:/run/s:exportname=x",
    "nbd+unix:///x?socket=/run/s",
    "rbd:pool/image@snap:id=me:mon_host=a\\:1\\;b:conf=/etc/c",
    "https://user:secret@host:444/a/b?c=d%20e",
    "gluster+rdma://[fe80::1]:2/vol/img?debug=4",
    "iscsi://h:1/iqn.x/3",
    "ssh://me@h/a?host_key_check=no",
    "nfs://h/a?uid=1&gid=2",
    "nvme://0000:01:00.0/1",
    "vxhs://h:1/id",
    "sheepdog:h:1:vdi",
    r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"a.img"}}"#,
    r#"json:{"file.driver":"nbd","file.host":"h","file.port":"1","file.export":"e"}"#,
    r#"json:{"driver":"raw","offset":512,"size":"1024","file":{"driver":"host_device","filename":"/dev/a"}}"#,
    r#"json:{'driver':'https','url':'https://h/a','readahead':1,'timeout':2,'sslverify':false,'cookie':'a=b'}"#,
    r#"json:{"driver":"rbd","pool":"p","image":"i","server":[{"host":"h","port":"1"}],"conf":"/c"}"#,
    r#"json:{"driver":"gluster","volume":"v","path":"p","server":[{"type":"unix","path":"/s"},{"type":"tcp","host":"h","port":"1"}]}"#,
];

fuzz_target!(
    init: plant(SEEDS.iter().enumerate().map(|(n, text)| (n.to_string(), text.as_bytes().to_vec()))),
    |data: &[u8]| {
        let overlays = [
            Source::file("/img/top.qcow2"),
            Source::file("top"),
            Reference::parse("https://h/a/top", Reading::Catena).expect("a URL").unresolved(),
            Source::from(Location::Dir("/dir".into())),
        ];
        for reading in [Reading::Libvirt, Reading::Catena] {
            let Ok(reference) = Reference::parse_bytes(data, reading) else {
                continue;
            };
            for overlay in &overlays {
                check(&reference.resolve(overlay));
            }
            let source = reference.unresolved();
            check(&source);
            written_back_it_is_the_same_place(&source);
        }
        if let Ok(text) = std::str::from_utf8(data) {
            for overlay in &overlays {
                let _ = differs_from_qemu(text, overlay);
            }
        }
    }
);

fn check(source: &Source) {
    assert!(!source.key().is_empty());
    assert!(source.same_location(source));
    let _ = (source.to_json(), source.to_string(), source.type_name());
    let xml = source.to_libvirt_xml();
    if let Err(error) = roxmltree::Document::parse(&xml) {
        panic!("not XML: {error}: {xml}");
    }
}

fn written_back_it_is_the_same_place(source: &Source) {
    let Ok(recorded) = source.to_recorded() else {
        return;
    };
    let again = Reference::parse(&recorded, Reading::Catena)
        .unwrap_or_else(|error| panic!("{recorded:?} cannot be read back: {error}"));
    assert_eq!(again.unresolved().key(), source.key(), "{recorded:?}");
    assert!(!again.has_lost(LostKind::Location), "{recorded:?}");
}
