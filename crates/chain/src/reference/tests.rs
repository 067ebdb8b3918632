//! Tables of strings and what becomes of them.

use super::*;
use catena_format::Format;

fn parse(text: &str, reading: Reading) -> Reference {
    Reference::parse(text, reading).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn xml(text: &str, reading: Reading) -> String {
    parse(text, reading).unresolved().to_libvirt_xml()
}

fn refusal(text: &str, reading: Reading) -> String {
    match Reference::parse(text, reading) {
        Ok(reference) => panic!("{text}: {:?}", reference.unresolved()),
        Err(error) => error.to_string(),
    }
}

const BOTH: [Reading; 2] = [Reading::Libvirt, Reading::Catena];

/// Strings that both readings take for the same element, without loss of location or credentials.
#[test]
fn takes_the_forms_that_libvirt_takes() {
    for (text, element) in [
        ("disk", "<source file='disk'/>\n"),
        ("a/b:c", "<source file='a/b:c'/>\n"),
        ("/x:y", "<source file='/x:y'/>\n"),
        ("./nbd:x", "<source file='./nbd:x'/>\n"),
        (
            "/o'neill & <co>",
            "<source file='/o&apos;neill &amp; &lt;co&gt;'/>\n",
        ),
        ("fat:/srv/share", "<source dir='/srv/share'/>\n"),
        (
            "http://web.test",
            "<source protocol='http' name=''>\n  <host name='web.test' port='80'/>\n</source>\n",
        ),
        (
            "https://web.test:8443/a%20b?x=1&y=%20",
            "<source protocol='https' name='a b' query='x=1&amp;y=%20'>\n  <host name='web.test' port='8443'/>\n</source>\n",
        ),
        (
            "ftps://web.test/f#frag",
            "<source protocol='ftps' name='f'>\n  <host name='web.test' port='990'/>\n</source>\n",
        ),
        (
            "nbd://[fe80::1]:7/",
            "<source protocol='nbd'>\n  <host name='fe80::1' port='7'/>\n</source>\n",
        ),
        (
            "nbd+unix:////e?socket=/run/n.sock",
            "<source protocol='nbd' name='/e'>\n  <host transport='unix' socket='/run/n.sock'/>\n</source>\n",
        ),
        (
            "nbd+unix://?socket=/run/n.sock",
            "<source protocol='nbd'>\n  <host transport='unix' socket='/run/n.sock'/>\n</source>\n",
        ),
        (
            "gluster+rdma://g.test/vol/dir/img",
            "<source protocol='gluster' name='vol/dir/img'>\n  <host name='g.test' transport='rdma'/>\n</source>\n",
        ),
        (
            "iscsi://s.test/iqn.2001-04.test:disk/2",
            "<source protocol='iscsi' name='iqn.2001-04.test:disk/2'>\n  <host name='s.test' port='3260'/>\n</source>\n",
        ),
        (
            "sheepdog://s.test/vdi",
            "<source protocol='sheepdog' name='vdi'>\n  <host name='s.test' port='7000'/>\n</source>\n",
        ),
        (
            "nfs://n.test/export/img",
            "<source protocol='nfs' name='export/img'>\n  <host name='n.test'/>\n</source>\n",
        ),
        (
            "nbd:h.test:0",
            "<source protocol='nbd'>\n  <host name='h.test' port='10809'/>\n</source>\n",
        ),
        (
            "nbd:h.test:99:exportname=a:exportname=b",
            "<source protocol='nbd' name='a:exportname=b'>\n  <host name='h.test' port='99'/>\n</source>\n",
        ),
        (
            "nbd:[::2]:99:exportname=:",
            "<source protocol='nbd' name=':'>\n  <host name='::2' port='99'/>\n</source>\n",
        ),
        (
            "nbd:unix:/run/s::exportname=/",
            "<source protocol='nbd' name='/'>\n  <host transport='unix' socket='/run/s:'/>\n</source>\n",
        ),
        (
            r"rbd:pool/img@snap:id=me:mon_host=a\,[\:\:1]\:6789\;b\:3300:conf=/etc/c.conf:key=x",
            "<source protocol='rbd' name='pool/img'>\n  <host name='a'/>\n  <host name='::1' port='6789'/>\n  \
             <host name='b' port='3300'/>\n  <snapshot name='snap'/>\n  <config file='/etc/c.conf'/>\n</source>\n",
        ),
        ("rbd:img", "<source protocol='rbd' name='img'/>\n"),
        (
            r#"json:{"driver":"file","filename":"/a"}"#,
            "<source file='/a'/>\n",
        ),
        (
            r#"json:{"file.driver":"host_device","file.filename":"/dev/d"}"#,
            "<source dev='/dev/d'/>\n",
        ),
        (
            r#"json: {"file":{"driver":"host_cdrom","filename":"/dev/c"}}"#,
            "<source dev='/dev/c'/>\n",
        ),
        (
            r#"json:{"driver":"raw","offset":7,"size":9,"file":{"driver":"file","filename":"/a"}}"#,
            "<source file='/a'>\n  <slices>\n    <slice type='storage' offset='7' size='9'/>\n  </slices>\n</source>\n",
        ),
        (
            r#"json:{"file.driver":"https","file.url":"https://w.test/p%5fq?r","file.sslverify":"off",
               "file.cookie":"a=\"b\"; c=d=e","file.timeout":5,"file.readahead":65536}"#,
            "<source protocol='https' name='p_q' query='r'>\n  <host name='w.test' port='443'/>\n  \
             <ssl verify='no'/>\n  <cookies>\n    <cookie name='a'>&quot;b&quot;</cookie>\n    \
             <cookie name='c'>d=e</cookie>\n  </cookies>\n  <readahead size='65536'/>\n  \
             <timeout seconds='5'/>\n</source>\n",
        ),
        (
            r#"json:{"driver":"gluster","volume":"v","path":"i","server.1.type":"unix","server.1.socket":"/s",
               "server.0.type":"inet","server.0.host":"g.test"}"#,
            "<source protocol='gluster' name='v/i'>\n  <host name='g.test' port='24007'/>\n  \
             <host transport='unix' socket='/s'/>\n</source>\n",
        ),
        (
            r#"json:{"driver":"iscsi","transport":"tcp","portal":"[::3]:9","target":"iqn.t","lun":4}"#,
            "<source protocol='iscsi' name='iqn.t/4'>\n  <host name='[::3]' port='9'/>\n</source>\n",
        ),
        (
            r#"json:{"driver":"iscsi","transport":"tcp","portal":"[::3]","target":"iqn.t"}"#,
            "<source protocol='iscsi' name='iqn.t/0'>\n  <host name='[::3]' port='3260'/>\n</source>\n",
        ),
        (
            r#"json:{"driver":"nbd","path":"/s","host":"h","export":"e"}"#,
            "<source protocol='nbd' name='e'>\n  <host transport='unix' socket='/s'/>\n</source>\n",
        ),
        (
            r#"json:{"driver":"sheepdog","vdi":"v","tag":"","server":{"type":"inet","host":"s.test","port":"9"}}"#,
            "<source protocol='sheepdog' name='v'>\n  <host name='s.test' port='9'/>\n</source>\n",
        ),
        (
            r#"json:{"driver":"ssh","path":"/i","host":"s.test","user":"me","host_key_check":"no"}"#,
            "<source protocol='ssh' name='/i'>\n  <host name='s.test' port='22'/>\n</source>\n",
        ),
        (
            r#"json:{"driver":"ssh","path":"/i","server.host":"s.test","server.port":"2222"}"#,
            "<source protocol='ssh' name='/i'>\n  <host name='s.test' port='2222'/>\n</source>\n",
        ),
        (
            r#"json:{"driver":"rbd","pool":"p","image":"i","snapshot":"s","conf":"/c","server":[{"host":"m"}]}"#,
            "<source protocol='rbd' name='p/i'>\n  <host name='m'/>\n  <snapshot name='s'/>\n  <config file='/c'/>\n</source>\n",
        ),
        (
            r#"json:{"driver":"rbd","filename":"rbd:p/i:mon_host=m"}"#,
            "<source protocol='rbd' name='p/i'>\n  <host name='m'/>\n</source>\n",
        ),
        (
            r#"json:{"driver":"nfs","server":{"type":"inet","host":"n.test"},"path":"/i","user":5,"group":6}"#,
            "<source protocol='nfs' name='/i'>\n  <host name='n.test'/>\n  <identity user='+5' group='+6'/>\n</source>\n",
        ),
        (
            r#"json:{"driver":"vxhs","vdisk-id":"u","server":{"host":"v.test"}}"#,
            "<source protocol='vxhs' name='u'>\n  <host name='v.test' port='9999'/>\n</source>\n",
        ),
        (
            r#"json:{"driver":"nvme","device":"0001:02:1f.7","namespace":3}"#,
            "<source type='pci' namespace='3'>\n  \
             <address domain='0x0001' bus='0x02' slot='0x1f' function='0x7'/>\n</source>\n",
        ),
        // The nesting of a key merges with one that is written out before it.
        (
            r#"json:{"file":{"driver":"file"},"file.filename":"/a"}"#,
            "<source file='/a'/>\n",
        ),
    ] {
        for reading in BOTH {
            let reference = parse(text, reading);
            assert_eq!(
                reference.unresolved().to_libvirt_xml(),
                element,
                "{reading:?} {text}"
            );
            assert!(!reference.has_lost(LostKind::Credentials), "{text}");
            assert!(
                !reference.has_lost(LostKind::Location),
                "{text}: {:?}",
                reference.lost()
            );
        }
    }
}

#[test]
fn refuses_in_libvirts_words() {
    for (text, message) in [
        ("://", "failed to parse backing file location '://'"),
        (
            "http://h:/x",
            "failed to parse backing file location 'http://h:/x'",
        ),
        (
            "http://h/%zz",
            "failed to parse backing file location 'http://h/%zz'",
        ),
        ("foo://h/x", "invalid backing protocol 'foo'"),
        ("nbd+udp://h/x", "invalid protocol transport type 'udp'"),
        (
            "gluster://h/vol",
            "missing volume name or file name in gluster source path 'vol'",
        ),
        ("foo:bar", "invalid backing protocol 'foo'"),
        ("http:x", "malformed backing store path for protocol http"),
        (
            "sheepdog:x",
            "backing store parser is not implemented for protocol sheepdog",
        ),
        ("nbd:", "malformed nbd string 'nbd:'"),
        ("nbd::1", "malformed nbd string 'nbd::1'"),
        ("nbd:[::1]", "malformed nbd string 'nbd:[::1]'"),
        (
            "nbd:unix::exportname=e",
            "malformed nbd string 'nbd:unix::exportname=e'",
        ),
        ("nbd:h:port", "failed to parse port number 'port'"),
        ("nbd:h:65536", "port '65536' out of range"),
        ("rbd:p/i:id=a:id=b", "duplicate 'id' found in 'i'"),
        ("json:{}", "JSON backing volume definition '{}' lacks driver name"),
        (
            r#"json:{"file.driver":"file"}"#,
            "missing 'filename' field in JSON backing volume definition",
        ),
        (
            r#"json:{"file.driver":"file","filename":"/a"}"#,
            "missing 'filename' field in JSON backing volume definition",
        ),
        (
            r#"json:{"driver":"quorum"}"#,
            "missing parser implementation for JSON backing volume driver 'quorum'",
        ),
        (
            r#"json:{"driver":"ftp","url":"http://h/f"}"#,
            "expected protocol 'ftp' but got 'http' in URI JSON volume definition",
        ),
        (
            r#"json:{"driver":"http"}"#,
            "missing 'url' in JSON backing volume definition",
        ),
        (
            r#"json:{"driver":"http","url":"http://h/f","cookie":"x"}"#,
            r#"malformed http cookie 'x' in backing store definition '{"driver":"http","url":"http://h/f","cookie":"***"}'"#,
        ),
        (
            r#"json:{"driver":"http","url":"http://h/f","timeout":-1}"#,
            r#"malformed 'timeout' field in backing store definition '{"driver":"http","url":"http://h/f","timeout":-1}'"#,
        ),
        (
            r#"json:{"driver":"https","url":"https://h/f","sslverify":1}"#,
            r#"malformed 'sslverify' field in backing store definition '{"driver":"https","url":"https://h/f","sslverify":1}'"#,
        ),
        (
            r#"json:{"driver":"raw"}"#,
            r#"JSON backing volume definition '{"driver":"raw"}' lacks 'file' object"#,
        ),
        (
            r#"json:{"driver":"raw","offset":true,"file":{"driver":"file","filename":"/a"}}"#,
            "malformed 'offset' property of 'raw' driver",
        ),
        (r#"json:{"a.b":1,"a":{}}"#, "can't deflatten colliding key 'a'"),
        (
            r#"json:{"a":1,"a.b":1}"#,
            "mixing nested objects and values is forbidden in JSON deflattening",
        ),
        (
            r#"json:{"driver":"nbd"}"#,
            "missing host specification of NBD server in JSON backing volume definition",
        ),
        (
            r#"json:{"driver":"nbd","server":{"host":"h"}}"#,
            "missing socket address type in JSON backing volume definition",
        ),
        (
            r#"json:{"driver":"nbd","server":{"type":"inet"}}"#,
            "missing hostname for tcp backing server in JSON backing volume definition",
        ),
        (
            r#"json:{"driver":"nbd","server":{"type":"unix"}}"#,
            "missing socket path for udp backing server in JSON backing volume definition",
        ),
        (
            r#"json:{"driver":"nbd","server":{"type":"vsock","host":"h"}}"#,
            "backing store protocol 'vsock' is not yet supported",
        ),
        (
            r#"json:{"driver":"gluster","volume":"v","path":"p"}"#,
            "missing 'volume', 'path' or 'server' attribute in JSON backing definition for gluster volume",
        ),
        (
            r#"json:{"driver":"gluster","volume":"v","path":"p","server":[]}"#,
            "at least 1 server is necessary in JSON backing definition for gluster volume",
        ),
        (
            r#"json:{"driver":"iscsi"}"#,
            "only TCP transport is supported for iSCSI volumes",
        ),
        (
            r#"json:{"driver":"iscsi","transport":"tcp"}"#,
            "missing 'portal' address in iSCSI backing definition",
        ),
        (
            r#"json:{"driver":"iscsi","transport":"tcp","portal":"h"}"#,
            "missing 'target' in iSCSI backing definition",
        ),
        (
            r#"json:{"driver":"sheepdog","filename":"vdi"}"#,
            "missing sheepdog URI in JSON backing volume definition",
        ),
        (r#"json:{"driver":"sheepdog"}"#, "missing sheepdog vdi name"),
        (
            r#"json:{"driver":"sheepdog","vdi":"v"}"#,
            "missing remote server specification in JSON backing volume definition",
        ),
        (
            r#"json:{"driver":"ssh","path":"p"}"#,
            "missing host/server or path of SSH JSON backing volume definition",
        ),
        (
            r#"json:{"driver":"rbd","pool":"p"}"#,
            "missing pool or image name in ceph backing volume JSON specification",
        ),
        (
            r#"json:{"driver":"nfs"}"#,
            "missing 'server' attribute in JSON backing definition for NFS volume",
        ),
        (
            r#"json:{"driver":"nfs","server":{"host":"h"},"user":"x"}"#,
            "missing 'user' or 'group' attribute in JSON backing definition for NFS volume",
        ),
        (
            r#"json:{"driver":"nfs","server":{"host":"h"},"user":1,"group":2}"#,
            "missing 'path' attribute in JSON backing definition for NFS volume",
        ),
        (
            r#"json:{"driver":"vxhs"}"#,
            "missing 'vdisk-id' or 'server' attribute in JSON backing definition for VxHS volume",
        ),
        (
            r#"json:{"driver":"nvme","device":"1:2","namespace":1}"#,
            "missing or malformed 'device' field of 'nvme' storage",
        ),
        (
            r#"json:{"driver":"nvme","device":"0000:01:00.0","namespace":0}"#,
            "missing or malformed 'namespace' field of 'nvme' storage",
        ),
    ] {
        for reading in BOTH {
            assert_eq!(refusal(text, reading), message, "{reading:?} {text}");
        }
    }
    for text in [
        "json:",
        "json:nonsense",
        r#"json:{"driver":"file""#,
        r#"json:{"a":1} x"#,
    ] {
        for reading in BOTH {
            assert!(
                refusal(text, reading).starts_with("failed to parse JSON: "),
                "{text}"
            );
        }
    }
}

#[test]
fn reads_what_libvirt_refuses_as_qemu_does() {
    for (text, message, source) in [
        ("file:/a", "invalid backing protocol 'file'", Source::file("/a")),
        (
            "file:///a",
            "invalid backing protocol 'file'",
            Source::file("///a"),
        ),
        (
            "host_device:/dev/a",
            "invalid backing protocol 'host_device'",
            Source::block("/dev/a"),
        ),
        (
            "nvme://0000:01:00.0/2",
            "failed to parse backing file location 'nvme://0000:01:00.0/2'",
            Location::Nvme(Nvme {
                domain: 0,
                bus: 1,
                slot: 0,
                function: 0,
                namespace: 2,
            })
            .into(),
        ),
        (
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a"}}"#,
            "missing parser implementation for JSON backing volume driver 'qcow2'",
            Source {
                format: Some(Format::Qcow2),
                ..Source::file("/a")
            },
        ),
        (
            r#"json:{"file.filename":"/a"}"#,
            r#"JSON backing volume definition '{"file.filename":"/a"}' lacks driver name"#,
            Source::file("/a"),
        ),
        (
            r#"json:{"driver":"vvfat","dir":"/d"}"#,
            "missing parser implementation for JSON backing volume driver 'vvfat'",
            Location::Dir("/d".into()).into(),
        ),
        (
            r#"json:{"driver":"raw","offset":"1k","file":{"driver":"file","filename":"/a"}}"#,
            "malformed 'offset' property of 'raw' driver",
            Source {
                slice: Some(Slice {
                    offset: 1024,
                    size: None,
                }),
                format: Some(Format::Raw),
                ..Source::file("/a")
            },
        ),
        (
            r#"json:{"driver":"vmdk","file":{"driver":"raw","offset":512,"size":4,"file":{"driver":"file","filename":"/a"}}}"#,
            "missing parser implementation for JSON backing volume driver 'vmdk'",
            Source {
                slice: Some(Slice {
                    offset: 512,
                    size: Some(4),
                }),
                format: Some(Format::Vmdk),
                ..Source::file("/a")
            },
        ),
    ] {
        assert_eq!(refusal(text, Reading::Libvirt), message);
        assert_eq!(parse(text, Reading::Catena).unresolved(), source, "{text}");
    }
    let quoted = parse("json:{'driver':'file','filename':'/a \"b\"'}", Reading::Catena);
    assert_eq!(quoted.unresolved(), Source::file("/a \"b\""));
}

#[test]
fn refuses_wrappers_that_do_not_come_down_to_one_format_over_one_object() {
    for text in [
        r#"json:{"driver":"qcow2","file":{"driver":"vmdk","file":{"driver":"file","filename":"/a"}}}"#,
        r#"json:{"driver":"raw","offset":1,"file":{"driver":"qcow2","file":{"driver":"file","filename":"/a"}}}"#,
        r#"json:{"driver":"raw","offset":1,"file":{"driver":"raw","size":1,"file":{"driver":"file","filename":"/a"}}}"#,
        r#"json:{"driver":"qcow2","file":"node"}"#,
        r#"json:{"driver":"file","driver":"file","filename":"/a"}"#,
        "json:[1]",
    ] {
        refusal(text, Reading::Catena);
    }
}

#[test]
fn a_numeric_port_counts_here_and_is_dropped_by_libvirt() {
    let text = r#"json:{"driver":"nbd","host":"h","port":99}"#;
    assert!(xml(text, Reading::Catena).contains("port='99'"));
    assert!(xml(text, Reading::Libvirt).contains("port='10809'"));
    assert!(parse(text, Reading::Libvirt).has_lost(LostKind::Location));
    assert!(parse(text, Reading::Catena).lost().is_empty());
}

#[test]
fn inline_credentials_are_lost_and_said_so() {
    for text in [
        "http://u:p@h/f",
        "iscsi://u@h/t/0",
        "http://@h/f",
        r#"json:{"driver":"iscsi","transport":"tcp","portal":"h","target":"t","user":"u"}"#,
        r#"json:{"driver":"iscsi","transport":"tcp","portal":"h","target":"t","password":"p"}"#,
        r#"json:{"driver":"ftp","url":"ftp://u:p@h/f"}"#,
    ] {
        for reading in BOTH {
            let reference = parse(text, reading);
            assert!(reference.has_lost(LostKind::Credentials), "{text}");
            assert!(!reference.unresolved().to_libvirt_xml().contains("p@"), "{text}");
        }
    }
}

#[test]
fn says_which_keys_change_the_bytes() {
    for (text, key, kind) in [
        (
            r#"json:{"file":{"driver":"file","filename":"/a"},"offset":1}"#,
            "offset",
            LostKind::Location,
        ),
        (
            r#"json:{"file":{"driver":"file","filename":"/a"},"backing":null}"#,
            "backing",
            LostKind::Location,
        ),
        (
            r#"json:{"driver":"sheepdog","vdi":"v","tag":"t","server.type":"inet","server.host":"h"}"#,
            "tag",
            LostKind::Location,
        ),
        (
            r#"json:{"driver":"file","filename":"/a","cache.direct":true}"#,
            "cache",
            LostKind::Setting,
        ),
        (
            r#"json:{"driver":"nbd","host":"h","tls-creds":"t"}"#,
            "tls-creds",
            LostKind::Setting,
        ),
    ] {
        for reading in BOTH {
            let reference = parse(text, reading);
            assert!(
                reference
                    .lost()
                    .iter()
                    .any(|lost| lost.key == key && lost.kind == kind),
                "{text}: {:?}",
                reference.lost()
            );
        }
    }
}

#[test]
fn a_slice_without_a_size_is_empty_to_libvirt_and_reaches_the_end_to_qemu() {
    let text = r#"json:{"driver":"raw","offset":5,"file":{"driver":"file","filename":"/a"}}"#;
    let slice = |reading| parse(text, reading).unresolved().slice;
    assert_eq!(
        slice(Reading::Libvirt),
        Some(Slice {
            offset: 5,
            size: Some(0)
        })
    );
    assert_eq!(
        slice(Reading::Catena),
        Some(Slice {
            offset: 5,
            size: None
        })
    );
    assert!(parse(text, Reading::Libvirt).has_lost(LostKind::Location));
}

#[test]
fn relative_names_are_joined_to_the_overlays_directory_as_text() {
    for (overlay, name, path) in [
        ("/img/top", "base", "/img/base"),
        ("/img/top", "./sub/../base", "/img/./sub/../base"),
        ("/top", "base", "/base"),
        ("//top", "base", "/base"),
        ("/img//top", "base", "/img/base"),
        ("top", "base", "./base"),
        ("d/top", "../base", "d/../base"),
        ("/img/top", "/base", "/base"),
    ] {
        for reading in BOTH {
            let source = parse(name, reading).resolve(&Source::file(overlay));
            // Paths compare by their parts; the text matters here.
            assert_eq!(source.path().unwrap().as_os_str(), path, "{overlay} {name}");
            let of_device = parse(name, reading).resolve(&Source::block(overlay));
            assert_eq!(of_device, Source::file(path));
        }
    }
}

#[test]
fn a_relative_name_beside_a_network_overlay_is_on_the_same_server() {
    let overlay = parse("gluster://g.test/vol/dir/top", Reading::Catena).unresolved();
    for reading in BOTH {
        let base = parse("base", reading).resolve(&overlay);
        assert_eq!(
            base.to_libvirt_xml(),
            "<source protocol='gluster' name='vol/dir/base'>\n  <host name='g.test' port='24007'/>\n</source>\n"
        );
    }
    let overlay = parse("http://w.test/top", Reading::Catena).unresolved();
    let name = |reading| {
        parse("base", reading)
            .resolve(&overlay)
            .network()
            .unwrap()
            .name
            .clone()
    };
    assert_eq!(name(Reading::Libvirt).as_deref(), Some("./base"));
    assert_eq!(name(Reading::Catena).as_deref(), Some("base"));
}

#[test]
fn relative_names_inside_json_are_resolved_here_and_kept_by_libvirt() {
    let overlay = Source::file("/img/top");
    let text = r#"json:{"driver":"raw","file":{"driver":"file","filename":"base"}}"#;
    assert_eq!(
        parse(text, Reading::Libvirt).resolve(&overlay),
        Source::file("base")
    );
    assert!(!parse(text, Reading::Libvirt).is_relative());
    let ours = parse(text, Reading::Catena);
    assert!(ours.is_relative() && ours.relative_name().is_none());
    assert_eq!(ours.resolve(&overlay).path(), Some(Path::new("/img/base")));
    assert_eq!(
        parse("file:base", Reading::Catena).resolve(&overlay),
        Source::file("/img/base")
    );
}

#[test]
fn qemus_options_of_a_folder_are_no_part_of_its_name() {
    let reference = parse("fat:floppy:rw:/d", Reading::Catena);
    assert_eq!(reference.unresolved().location, Location::Dir("/d".into()));
    assert!(reference.has_lost(LostKind::Location));
    let libvirt = parse("fat:floppy:rw:/d", Reading::Libvirt).unresolved();
    assert_eq!(libvirt.location, Location::Dir("floppy:rw:/d".into()));
}

#[test]
fn what_follows_the_first_colon_decides_between_uri_and_colon_form_here() {
    let text = "rbd:p/i:conf=a://b";
    let ours = parse(text, Reading::Catena).unresolved();
    assert_eq!(ours.network().unwrap().name.as_deref(), Some("i"));
    let libvirt = parse(text, Reading::Libvirt).unresolved();
    assert_eq!(libvirt.network().unwrap().name.as_deref(), Some("p/i:conf=a://b"));
}

#[test]
fn the_same_place_is_the_same_by_libvirts_rule_and_by_key() {
    let source = |text| parse(text, Reading::Catena).unresolved();
    for (a, b, same, same_key) in [
        ("/a", "/a", true, true),
        ("/a", "/./a", false, true),
        ("/a", "/b", false, false),
        ("nbd://h/e", "nbd:h:10809:exportname=e", true, true),
        ("nbd://h/e", "nbd://H/e", false, true),
        ("nbd://h/e", "nbd://h/f", false, false),
        ("http://h/f?a", "http://h/f?b", true, false),
        ("rbd:p/i@a", "rbd:p/i@b", false, false),
        ("http://h/f", "https://h/f", false, false),
        (
            r#"json:{"driver":"raw","offset":1,"size":2,"file":{"driver":"file","filename":"/a"}}"#,
            "/a",
            true,
            false,
        ),
    ] {
        assert_eq!(source(a).same_location(&source(b)), same, "{a} {b}");
        assert_eq!(source(a).key() == source(b).key(), same_key, "{a} {b}");
    }
}

#[test]
fn writes_what_libvirt_records() {
    for (text, recorded) in [
        ("/a", "/a"),
        ("fat:/d", "fat:/d"),
        ("nbd://h", "nbd://h:10809"),
        ("nbd:h:5:exportname=e f", "nbd://h:5/e%20f"),
        ("https://[::1]/f?q=1", "https://[::1]:443/f?q=1"),
        ("gluster://h/v/i", "gluster://h:24007/v/i"),
        ("iscsi://h/t/1", "iscsi://h:3260/t/1"),
        (
            "nbd:unix:/s:exportname=e",
            r#"json:{"file":{"driver":"nbd","server":{"type":"unix","path":"/s"},"export":"e"}}"#,
        ),
        (
            "rbd:p/i@s:mon_host=m",
            r#"json:{"file":{"driver":"rbd","pool":"p","image":"i","snapshot":"s","server":[{"host":"m","port":"0"}]}}"#,
        ),
        (
            r#"json:{"driver":"raw","offset":1,"size":2,"file":{"driver":"file","filename":"/a"}}"#,
            r#"json:{"file":{"driver":"raw","offset":1,"size":2,"file":{"driver":"file","filename":"/a"}}}"#,
        ),
        (
            r#"json:{"driver":"http","url":"http://h/f","timeout":9}"#,
            r#"json:{"file":{"driver":"http","url":"http://h:80/f","timeout":9}}"#,
        ),
        (
            r#"json:{"driver":"nvme","device":"0000:01:00.0","namespace":1}"#,
            r#"json:{"file":{"driver":"nvme","device":"0000:01:00.0","namespace":1}}"#,
        ),
    ] {
        assert_eq!(
            parse(text, Reading::Catena).unresolved().to_recorded().unwrap(),
            recorded,
            "{text}"
        );
    }
    assert_eq!(Source::file("a:b").to_recorded().unwrap(), "./a:b");
    assert!(
        parse("sheepdog://h/v", Reading::Catena)
            .unresolved()
            .to_recorded()
            .is_err()
    );
}

#[test]
fn says_where_libvirt_and_qemu_part() {
    let overlay = Source::file("/img/top");
    for (text, words) in [
        ("file:/a", "libvirt refuses it"),
        (
            r#"json:{"driver":"nbd","host":"h","port":99}"#,
            "libvirt opens 'nbd://h:10809', QEMU 'nbd://h:99'",
        ),
        (r#"json:{"driver":"file","filename":"base"}"#, "working directory"),
        ("fat:floppy:/d", "QEMU 'fat:/d'"),
        ("tftp://h/f", "QEMU 10 has no 'tftp' driver"),
        ("rbd://h/p/i", "QEMU knows no 'rbd://'"),
        ("http://u:p@h/f", "inline credentials"),
        ("nfs://h/f?uid=1", "libvirt drops the query"),
        ("nbd://h/e?x=1", "query invalid"),
        (
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/a"}}"#,
            "libvirt refuses it",
        ),
        (
            r#"json:{"file":{"driver":"file","filename":"/a"},"offset":512}"#,
            "'offset' is not carried",
        ),
        (
            r#"json:{"driver":"file","driver":"file","filename":"/a"}"#,
            "QEMU refuses it",
        ),
    ] {
        let sentence = differs_from_qemu(text, &overlay).unwrap_or_else(|| panic!("{text}: no difference"));
        assert!(sentence.contains(words), "{text}: {sentence}");
    }
    for text in [
        "/a",
        "base",
        "nbd://h/e",
        "nbd:unix:/s",
        "foo:x",
        "https://h/f?q",
        "fat:/d",
        "rbd:p/i",
    ] {
        assert_eq!(differs_from_qemu(text, &overlay), None, "{text}");
    }
}

#[test]
fn hostile_strings_are_bounded() {
    let deep = |levels: usize| format!("json:{}{}{}", r#"{"a":"#.repeat(levels), "1", "}".repeat(levels));
    for reading in BOTH {
        assert!(refusal(&deep(100_000), reading).contains("nesting too deep"));
        assert_eq!(
            Reference::parse(&"a".repeat(MAX_BYTES + 1), reading)
                .unwrap_err()
                .kind(),
            ReferenceErrorKind::TooLong
        );
        assert_eq!(
            Reference::parse("", reading).unwrap_err().kind(),
            ReferenceErrorKind::Empty
        );
        assert_eq!(
            Reference::parse("\0x", reading).unwrap_err().kind(),
            ReferenceErrorKind::Empty
        );
        assert_eq!(parse("/a\0b", reading).unresolved(), Source::file("/a"));
        let dotted = format!(r#"json:{{"{}x":1}}"#, "a.".repeat(400_000));
        assert!(refusal(&dotted, reading).contains("nesting too deep"));
    }
    assert!(refusal(&deep(32), Reading::Libvirt).contains("nesting too deep"));
    assert!(refusal(&deep(31), Reading::Libvirt).contains("lacks driver name"));
}

#[test]
fn plain_names_need_not_be_utf8() {
    let reference = Reference::parse_bytes(b"b\xffse", Reading::Catena).unwrap();
    let source = reference.resolve(&Source::file("/img/top"));
    assert_eq!(source.path().unwrap().as_os_str().as_bytes(), b"/img/b\xffse");
    assert_eq!(source.key(), r"path:/img/b\xffse");
    let error = Reference::parse_bytes(b"nbd:\xff:1", Reading::Catena).unwrap_err();
    assert_eq!(error.kind(), ReferenceErrorKind::NotText);
}
