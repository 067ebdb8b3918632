//! The images that are drawn can be made, and are what was asked for.

use catena_testkit::images::{
    self, BackingName, ChainSpec, DataFile, Encryption, Features, Fill, Format, ImageSpec, LayerSpec, Op,
    Qcow2Spec,
};
use catena_testkit::proptest::prelude::*;
use catena_testkit::{oracle, scratch};

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn every_chain_that_is_drawn_can_be_built_and_read(chain in images::chains(Features { huge: false, ..Features::all() }, 1..=6)) {
        let dir = scratch().unwrap();
        let built = chain.build(dir.path()).unwrap();
        let guest = oracle::guest(&built).unwrap();
        // QEMU counts in sectors.
        prop_assert_eq!(guest.len(), chain.layers[0].image.size.next_multiple_of(512));
        let map = oracle::map(&built).unwrap();
        prop_assert_eq!(map.iter().map(|extent| extent.length).sum::<u64>(), guest.len());
        let infos = oracle::info_chain(&built).unwrap();
        prop_assert_eq!(infos.len(), chain.layers.len());
        for (info, layer) in infos.iter().zip(&built.layers) {
            prop_assert_eq!(&info.format, layer.format);
            prop_assert_eq!(info.virtual_size, layer.size.next_multiple_of(512));
            prop_assert_eq!(&info.backing_filename, &layer.backing_name);
            prop_assert_eq!(
                info.backing_filename_format.is_some(),
                layer.backing_name.is_some() && layer.format_recorded
            );
        }
    }

    #[test]
    fn every_image_that_was_closed_checks_clean(image in images::images(Features { dirty: false, huge: false, ..Features::all() })) {
        let dir = scratch().unwrap();
        let built = image.build(dir.path()).unwrap();
        prop_assert!(oracle::check(&built, 0).unwrap().is_clean());
    }
}

fn layer(image: ImageSpec) -> LayerSpec {
    LayerSpec {
        image,
        backing: BackingName::Relative,
        format_recorded: true,
        own_folder: false,
    }
}

fn qcow2(qcow2: Qcow2Spec, ops: Vec<Op>) -> ImageSpec {
    ImageSpec {
        format: Format::Qcow2(qcow2),
        size: 1 << 20,
        ops,
        left_open: false,
    }
}

#[test]
fn a_guest_reads_the_last_write_of_the_uppermost_layer() {
    let base = ImageSpec {
        format: Format::Raw,
        size: 100_000,
        ops: vec![Op::Write {
            at: 0,
            len: 100_000,
            fill: Fill::Byte(1),
        }],
        left_open: false,
    };
    let middle = qcow2(
        Qcow2Spec::default(),
        vec![Op::Compress {
            at: 0,
            len: 1,
            fill: Fill::Byte(2),
        }],
    );
    let top = qcow2(
        Qcow2Spec {
            cluster_bits: 9,
            ..Qcow2Spec::default()
        },
        vec![Op::Zero {
            at: 1024,
            len: 512,
            unmap: true,
        }],
    );
    let chain = ChainSpec {
        layers: [top, middle, base].map(layer).into(),
    }
    .normalised();
    let dir = scratch().unwrap();
    let built = chain.build(dir.path()).unwrap();
    let guest = oracle::guest(&built).unwrap();
    let expected = |at: u64| match at {
        1024..1536 => 0,
        0..65_536 => 2,
        65_536..100_000 => 1,
        _ => 0,
    };
    let difference = guest.first_difference(|at, buffer| {
        (at..).zip(buffer).for_each(|(at, byte)| *byte = expected(at));
        anyhow::Ok(())
    });
    assert_eq!(difference.unwrap(), None);
    let wrong = guest.first_difference(|at, buffer| {
        (at..)
            .zip(buffer)
            .for_each(|(at, byte)| *byte = expected(at) + u8::from(at == 99_999));
        anyhow::Ok(())
    });
    assert_eq!(wrong.unwrap(), Some(99_999));
}

#[test]
fn an_encrypted_layer_in_the_middle_is_read_with_its_password() {
    let write = vec![Op::Write {
        at: 4096,
        len: 4096,
        fill: Fill::Byte(7),
    }];
    for encryption in [Encryption::Luks, Encryption::Aes] {
        let base = qcow2(
            Qcow2Spec {
                encryption: Some(encryption),
                ..Qcow2Spec::default()
            },
            write.clone(),
        );
        let top = qcow2(Qcow2Spec::default(), vec![]);
        let chain = ChainSpec {
            layers: [top, base].map(layer).into(),
        }
        .normalised();
        let dir = scratch().unwrap();
        let built = chain.build(dir.path()).unwrap();
        assert!(built.is_encrypted());
        let mut expected = vec![0; 1 << 20];
        expected[4096..8192].fill(7);
        let difference = oracle::guest(&built).unwrap().first_difference(|at, buffer| {
            let at = usize::try_from(at)?;
            buffer.copy_from_slice(&expected[at..at + buffer.len()]);
            anyhow::Ok(())
        });
        assert_eq!(difference.unwrap(), None);
    }
}

#[test]
fn a_raw_data_file_has_the_bytes_of_the_guest() {
    let write = vec![Op::Write {
        at: 512,
        len: 512,
        fill: Fill::Text(3),
    }];
    let image = qcow2(
        Qcow2Spec {
            data_file: Some(DataFile::Raw),
            ..Qcow2Spec::default()
        },
        write,
    )
    .normalised();
    let dir = scratch().unwrap();
    let built = image.build(dir.path()).unwrap();
    let data = std::fs::read(built.layers[0].data_file.as_ref().unwrap()).unwrap();
    let mut expected = vec![0; 1 << 20];
    oracle::guest(&built).unwrap().read_at(0, &mut expected).unwrap();
    assert!(expected.iter().any(|byte| *byte != 0));
    assert!(data == expected);
}

#[test]
fn a_writer_that_died_leaves_an_image_dirty_with_its_data() {
    let write = vec![Op::Write {
        at: 0,
        len: 512,
        fill: Fill::Byte(9),
    }];
    let spec = Qcow2Spec {
        lazy_refcounts: true,
        ..Qcow2Spec::default()
    };
    let image = ImageSpec {
        left_open: true,
        ..qcow2(spec, write)
    }
    .normalised();
    let dir = scratch().unwrap();
    let built = image.build(dir.path()).unwrap();
    assert!(oracle::info_chain(&built).unwrap()[0].dirty_flag);
    assert!(!oracle::check(&built, 0).unwrap().is_clean());
    let mut byte = [0];
    oracle::guest(&built).unwrap().read_at(0, &mut byte).unwrap();
    assert_eq!(byte, [9]);
}
