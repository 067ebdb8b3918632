//! Documents, read: what of them is kept, where errors stand, and that hostile ones do no harm.
#![cfg(test)]

use catena::reference::{Location, Protocol};
use catena_format::Format;
use catena_virt::{Below, Document, Kind, Place, XmlErrorKind};
use proptest::prelude::*;

const DOMAIN: &str = "<domain type='kvm'>
  <name>vm</name>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
      <source file='/i/top' index='1'>
        <dataStore type='file'><format type='raw'/><source file='/i/data'/></dataStore>
      </source>
      <backingStore type='network' index='2'>
        <format type='qcow2'><metadata_cache><max_size unit='KiB'>4</max_size></metadata_cache></format>
        <source protocol='nbd' name='e' tls='yes'><host name='h'/></source>
        <backingStore type='block'><format type='vhd'/><source dev='/dev/x'/><backingStore/></backingStore>
      </backingStore>
      <target dev='vda' bus='virtio'/>
      <readonly/>
    </disk>
    <disk type='volume' device='disk'><source pool='p' volume='v'/><target dev='vdb'/></disk>
  </devices>
</domain>";

#[test]
fn a_domain_keeps_what_describes_its_chains() {
    let document = Document::parse(DOMAIN).unwrap();
    assert_eq!(
        (document.kind, document.name.as_deref()),
        (Kind::Domain, Some("vm"))
    );
    let disk = document.disk("vda").unwrap();
    assert!(disk.readonly);
    let formats: Vec<_> = disk.layers.iter().map(|layer| layer.format.unwrap()).collect();
    assert_eq!(formats, [Format::Qcow2, Format::Qcow2, Format::Vhdx]);
    assert!(matches!(disk.below, Below::Closed(_)));
    assert_eq!(disk.layers[1].cache_size, Some(4096));
    assert_eq!(disk.layers[1].details.tls, Some(true));
    let network = disk.layers[1].source().unwrap().network().unwrap();
    assert_eq!(
        (network.protocol, network.hosts[0].port),
        (Protocol::Nbd, Some(10809))
    );
    assert!(matches!(
        disk.layers[2].source().unwrap().location,
        Location::Block(_)
    ));
    let store = disk.layers[0].data_store.as_ref().unwrap();
    assert_eq!(store.source().unwrap().to_string(), "/i/data");
    assert!(matches!(
        document.disk("vdb").unwrap().layers[0].place,
        Place::Volume { .. }
    ));
    assert_eq!(
        document
            .text()
            .get(disk.layers[0].spans.path.clone().unwrap())
            .unwrap(),
        "/i/top"
    );
    assert_eq!(
        document
            .text()
            .get(disk.layers[2].spans.format.clone().unwrap())
            .unwrap(),
        "vhd"
    );
}

#[test]
fn snapshots_and_volumes_are_read() {
    let snapshot = Document::parse(
        "<domainsnapshot><name>s</name><disks><disk name='vda' snapshot='external'><source file='/i/new'/></disk>\
         <disk name='vdb' snapshot='no'/></disks></domainsnapshot>",
    )
    .unwrap();
    assert_eq!(snapshot.snapshot_disks.len(), 2);
    assert!(snapshot.snapshot_disks[0].layer.is_some());
    let volume = Document::parse(
        "<volume><name>v</name><capacity unit='G'>1</capacity><target><path>/p/v</path><format type='qcow2'/></target>\
         <backingStore><path>/p/base</path></backingStore></volume>",
    )
    .unwrap()
    .volume
    .unwrap();
    assert_eq!(volume.capacity, Some(1 << 30));
    assert_eq!(volume.backing, Some(("/p/base".into(), None)));
}

#[test]
fn an_error_says_where() {
    let error = Document::parse(DOMAIN.replace("type='vhd'", "type='luks'")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "XML error: unknown storage source format 'luks'"
    );
    assert_eq!((error.line, error.column), (12, 36));
}

#[test]
fn elements_of_a_namespace_are_others_and_names_that_begin_with_a_colon_are_refused() {
    let parse = |source: &str| {
        let text = format!("<disk xmlns:q='urn:q'>{source}<target dev='vda'/></disk>");
        Document::parse(text).map(|document| document.disks[0].layers[0].source().unwrap().to_string())
    };
    assert_eq!(parse("<q:source file='/a'/><source file='/b'/>").unwrap(), "/b");
    assert_eq!(parse("<source q:file='/a' file='/b'/>").unwrap(), "/a");
    for source in [
        "<:source file='/a'></source>",
        "<source :file='/a'/>",
        "<source file='/a'/><:other/>",
    ] {
        let error = parse(source).unwrap_err();
        assert_eq!(error.to_string(), "a name begins with a colon", "{source}");
    }
}

#[test]
fn entities_and_document_types_are_refused() {
    for text in [
        "<!DOCTYPE disk [<!ENTITY a 'b'>]><disk>&a;</disk>",
        "<!DOCTYPE disk SYSTEM 'file:///etc/passwd'><disk/>",
        "<disk>&a;</disk>",
        "",
        "<disk",
        "<other/>",
    ] {
        Document::parse(text).unwrap_err();
    }
}

fn nested(depth: usize) -> String {
    let open = "<backingStore type='file'><format type='qcow2'/><source file='/b'/>";
    format!(
        "<disk><driver type='qcow2'/><source file='/a'/><target dev='vda'/>{}{}</disk>",
        open.repeat(depth),
        "</backingStore>".repeat(depth)
    )
}

#[test]
fn two_hundred_layers_are_the_most() {
    assert_eq!(Document::parse(nested(199)).unwrap().disks[0].layers.len(), 200);
    let error = Document::parse(nested(200)).unwrap_err();
    assert!(
        error
            .message
            .starts_with("backing chains more than 200 layers deep"),
        "{error}"
    );
    let error = Document::parse(nested(100_000)).unwrap_err();
    assert_eq!((error.kind, error.line), (XmlErrorKind::NotXml, 1));
}

#[test]
fn a_document_made_to_cost_much_is_refused() {
    let attributes: String = (0..500_000).map(|number| format!(" a{number}=''")).collect();
    Document::parse(format!("<disk{attributes}/>")).unwrap_err();
    Document::parse(format!("<disk>{}</disk>", "<a/>".repeat(1_000_000))).unwrap_err();
    Document::parse("<a>".repeat(1_000_000)).unwrap_err();
    Document::parse(" ".repeat(5 << 20)).unwrap_err();
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(cuts in proptest::collection::vec((0..DOMAIN.len(), 0..DOMAIN.len(), 0..40_usize), 0..4)) {
        // Pieces of the document moved about, all of them ASCII.
        let mut text = DOMAIN.to_owned();
        for (from, to, len) in cuts {
            let piece = text.get(from.min(text.len())..(from + len).min(text.len())).unwrap().to_owned();
            text.insert_str(to.min(text.len()), &piece);
        }
        let _ = Document::parse(text);
    }
}
