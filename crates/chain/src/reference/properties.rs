//! What holds for any string and any source.

use super::*;
use proptest::prelude::*;

const BOTH: [Reading; 2] = [Reading::Libvirt, Reading::Catena];

fn host() -> impl Strategy<Value = Host> {
    let name = prop_oneof!["[a-z][a-z0-9.-]{0,8}", Just("fe80::1".to_owned())];
    (name, 1..u16::MAX).prop_map(|(name, port)| Host::tcp(name, Some(port)))
}

fn sources() -> impl Strategy<Value = Source> {
    let name = "[ -~é]{1,12}";
    let network = (0..7_usize, name, host(), prop::bool::ANY, 0..3_u64).prop_map(
        |(kind, name, host, unix, timeout)| {
            let protocol = [
                Protocol::Nbd,
                Protocol::Https,
                Protocol::Gluster,
                Protocol::Ssh,
                Protocol::Rbd,
                Protocol::Ftp,
                Protocol::Nfs,
            ][kind];
            let mut network = Network::new(protocol);
            network.name = Some(name);
            network.hosts = vec![match (unix, protocol) {
                (true, Protocol::Nbd | Protocol::Gluster) => Host::unix("/run/s"),
                _ => host,
            }];
            if matches!(protocol, Protocol::Gluster | Protocol::Rbd) {
                network.volume = Some("v".to_owned());
            }
            if protocol == Protocol::Nfs && unix {
                network.nfs_group = Some("+6".to_owned());
            }
            if matches!(protocol, Protocol::Https | Protocol::Ftp) {
                network.timeout = timeout;
            }
            Source::from(network)
        },
    );
    let place = prop_oneof![
        name.prop_map(Source::file),
        name.prop_map(|name| Source::file(format!("/{name}"))),
        "/[a-z:]{1,9}".prop_map(|name| Location::Dir(name.into()).into()),
        network,
    ];
    let slice = prop::option::of((0..u64::MAX, prop::option::of(0..u64::MAX)));
    (place, slice).prop_map(|(source, slice)| Source {
        slice: slice.map(|(offset, size)| Slice { offset, size }),
        ..source
    })
}

proptest! {
    #[test]
    fn no_string_makes_the_parser_panic(text in "\\PC*") {
        for reading in BOTH {
            let _ = Reference::parse(&text, reading);
        }
        let _ = differs_from_qemu(&text, &Source::file("/img/top"));
    }

    #[test]
    fn no_string_with_a_known_beginning_makes_the_parser_panic(
        start in prop::sample::select(&[
            "json:", "json:{\"driver\":\"", "json:{\"file.driver\":\"nbd\",", "nbd:", "rbd:", "nbd+unix://",
            "http://", "fat:", "file:", "nvme://", "gluster://h/", "json:{'",
        ][..]),
        rest in "[-\\\\\\[\\]{}\"':,;./?@%=a0é\u{0}]{0,40}",
    ) {
        let text = format!("{start}{rest}");
        for reading in BOTH {
            if let Ok(reference) = Reference::parse(&text, reading) {
                let source = reference.resolve(&Source::file("/img/top"));
                let _ = (source.key(), source.to_json(), source.to_libvirt_xml(), source.to_recorded());
            }
        }
        let _ = differs_from_qemu(&text, &Source::file("/img/top"));
    }

    #[test]
    fn a_recorded_source_reads_as_the_same_place(source in sources()) {
        let recorded = source.to_recorded().unwrap();
        let again = Reference::parse(&recorded, Reading::Catena).unwrap();
        prop_assert_eq!(again.unresolved().key(), source.key(), "{}", recorded);
        prop_assert!(!again.has_lost(LostKind::Location));
    }
}

#[test]
fn a_server_whose_name_fits_no_uri_is_recorded_all_the_same() {
    for name in ["a:b/c", "[x#y://h?]", "fe80::1%eth0"] {
        let source = Source::from(Network {
            hosts: vec![Host::tcp(name, Some(1))],
            ..Network::new(Protocol::Nbd)
        });
        let again = Reference::parse(&source.to_recorded().unwrap(), Reading::Catena).unwrap();
        assert_eq!(again.unresolved().key(), source.key());
    }
}
