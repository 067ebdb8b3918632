//! Who may open what: libvirt with its DAC driver on, virt-aa-helper, and the kernel are asked.
#![cfg(test)]

use catena::Policy;
use catena::doctor::{Access, User};
use catena_testkit::Folder;
use catena_testkit::dice::Dice;
use catena_testkit::libvirt::{Daemon, Guest, NOBODY};
use catena_virt::access::{self, Grant, Host, Kept, Role, change, undo};
use catena_virt::{Document, live};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The domain's.
const UUID: &str = "11111111-2222-3333-4444-555555555555";

fn host() -> Host {
    Host::new("", "", Some(&format!("+{NOBODY}:+{NOBODY}"))).unwrap()
}

/// Every file that is opened for the disks of a domain.
fn grants(document: &Document, host: &Host) -> Vec<Grant> {
    let disks = document.disks.iter().filter_map(|disk| {
        let chain = disk.chain(&Policy::libvirt()).ok()?;
        Some(access::grants(disk, &chain, &document.seclabels, host).unwrap())
    });
    disks.flatten().collect()
}

fn domain(devices: &str, beside: &str) -> Document {
    let text = format!(
        "<domain type='qemu'><name>g</name><uuid>{UUID}</uuid>\
         <memory unit='MiB'>16</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os>\
         <features><acpi/></features><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices>{beside}</domain>"
    );
    Document::parse(text.as_str()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Disks over chains of one to five layers, with what decides about their owners.
fn generate(dice: &mut Dice, folder: &Folder) -> String {
    let mut devices = String::new();
    for disk in 0..dice.within(1..4) {
        let depth = dice.within(1..6);
        let mut layers: Vec<(String, &str)> = Vec::new();
        for number in 0..depth {
            let name = format!("d{disk}l{number}");
            let below = layers.last().cloned();
            let format = if number == 0 && dice.chance(40) {
                "raw"
            } else {
                "qcow2"
            };
            match below {
                Some((below, format)) => {
                    folder.img(&format!("create -q -f qcow2 -b {below} -F {format} {name}"))
                }
                None if format == "qcow2" && dice.chance(30) => {
                    let data = folder.file(&format!("{name}.data")).display().to_string();
                    folder.img(&format!("create -q -f qcow2 -o data_file={data} {name} 1M"))
                }
                None => folder.img(&format!("create -q -f {format} {name} 1M")),
            };
            layers.push((name, format));
        }
        layers.reverse();
        let given = 1 + dice.index(layers.len());
        let ids: Vec<_> = [0; 2].iter().map(|_| 20_000 + dice.below(9)).collect();
        let mut label = |chance| {
            if !dice.chance(chance) {
                return String::new();
            }
            match dice.below(4) {
                0 => "<seclabel model='dac' relabel='no'/>".to_owned(),
                1 => "<seclabel model='dac'/>".to_owned(),
                _ => format!(
                    "<seclabel model='dac'><label>+{}:+{}</label></seclabel>",
                    ids[0], ids[1]
                ),
            }
        };
        let path = |name: &str| folder.file(name).display().to_string();
        let top_label = label(30);
        let mut nested = String::new();
        for (name, format) in layers[1..given].iter().rev() {
            nested = format!(
                "<backingStore type='file'><format type='{format}'/><source file='{}'>{}</source>{nested}</backingStore>",
                path(name),
                label(15)
            );
        }
        let (top, format) = &layers[0];
        let flags = match (dice.below(5), *format) {
            (0, _) => "<readonly/>",
            (1, "raw") => "<shareable/>",
            _ => "",
        };
        let letter = char::from(b"abc"[disk as usize]);
        devices.push_str(&format!(
            "<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{}'>{top_label}</source>{nested}\
             <target dev='vd{letter}' bus='virtio'/>{flags}</disk>",
            path(top)
        ));
    }
    devices
}

fn folder() -> Folder {
    let folder = Folder::new();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn labels_that_libvirt_refuses_are_refused_in_its_words() {
    let daemon = Daemon::start_unprivileged().unwrap();
    let overriding = "<disk type='file'><source file='/x'><seclabel model='dac' relabel='no'/></source>\
                      <target dev='vda' bus='virtio'/></disk>";
    for (devices, label) in [
        ("", "<seclabel type='dynamic' model='dac' relabel='no'/>"),
        ("", "<seclabel type='none' model='dac' relabel='yes'/>"),
        ("", "<seclabel type='static' model='dac'/>"),
        ("", "<seclabel type='other' model='dac'/>"),
        ("", "<seclabel model='dac' relabel='maybe'/>"),
        (overriding, "<seclabel type='none' model='dac'/>"),
    ] {
        let text = format!("<domain><name>g</name><devices>{devices}</devices>{label}</domain>");
        let ours = Document::parse(text).unwrap_err().to_string();
        let said = daemon.running(devices, label, || ()).unwrap_err();
        assert!(said.contains(&ours), "{label}: ours is {ours}, libvirt's {said}");
    }
}

/// What libvirt's helper would write for a domain, as far as it is about that.
fn helper(text: &str, about: &Path) -> Vec<String> {
    helper_with(text, about, &[])
}

fn helper_with(text: &str, about: &Path, options: &[&str]) -> Vec<String> {
    let mut helper = Command::new("/usr/lib/libvirt/virt-aa-helper")
        .args(["-d", "-r", "-u", &format!("libvirt-{UUID}")])
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    helper.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = helper.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let quoted = about.display().to_string();
    let mut rules: Vec<_> = String::from_utf8(said)
        .unwrap()
        .lines()
        .filter(|line| line.contains(&quoted))
        .map(|line| line.trim().to_owned())
        .collect();
    rules.sort();
    rules
}

#[test]
fn rules_for_apparmor_are_those_of_libvirts_helper() {
    for seed in 1000..1040 {
        let folder = folder();
        let devices = generate(&mut Dice::new(seed), &folder);
        // A link on the way is followed, a part that is missing is not.
        std::os::unix::fs::symlink(folder.path(), folder.file("link")).unwrap();
        let devices = devices.replace("d0l0'", "link/d0l0'");
        let document = domain(&devices, "");
        let chains: Vec<_> = document
            .disks
            .iter()
            .map(|disk| disk.chain(&Policy::libvirt()).ok())
            .collect();
        let mut ours: Vec<_> = grants(&document, &host())
            .iter()
            .flat_map(|grant| {
                let profile = grant.apparmor.as_ref().unwrap();
                // The helper reads what libvirt wrote, in which <readonly/> comes after a data file: it lets that be written.
                if grant.role == Role::DataFile && grant.layer == 0 && !profile.write {
                    vec![format!("\"{}\" rwk,", profile.path.display())]
                } else {
                    profile.escaped()
                }
            })
            .collect();
        ours.sort();
        let live = live::live(&document, &chains, catena_virt::Generation::V11).unwrap();
        assert_eq!(ours, helper(&live, folder.path()), "seed {seed}: {live}");
    }
}

#[test]
fn paths_that_libvirts_helper_refuses_have_no_rule() {
    let folders = [
        "/bin",
        "/boot",
        "/etc",
        "/etc/libvirt-sandbox/services",
        "/home",
        "/lib",
        "/lib64",
        "/lost+found",
        "/opt",
        "/proc",
        "/sbin",
        "/selinux",
        "/srv",
        "/sys",
        "/sys/devices/pci0000:00",
        "/sys/kernel/config/target/vhost",
        "/tmp",
        "/usr",
        "/usr/bin",
        "/usr/lib",
        "/usr/lib/riscv64-linux-gnu/opensbi",
        "/usr/lib/u-boot",
        "/usr/libexec",
        "/usr/local",
        "/usr/local/bin",
        "/usr/local/etc",
        "/usr/local/lib",
        "/usr/local/sbin",
        "/usr/local/share",
        "/usr/sbin",
        "/usr/share",
        "/usr/share/AAVMF",
        "/usr/share/OVMF",
        "/usr/share/edk2",
        "/usr/share/edk2-ovmf",
        "/usr/share/ovmf",
        "/usr/share/qemu",
        "/usr/share/qemu-efi",
        "/usr/share/qemu-efi-aarch64",
        "/usr/share/qemu-efi-loongarch64",
        "/usr/share/qemu-efi-riscv64",
        "/usr/share/qemu-kvm",
        "/usr/src",
        "/var",
        "/vmlinuz",
        "/initrd",
    ];
    for folder in folders {
        for flags in ["", "<readonly/>"] {
            let disk = format!(
                "<disk type='file'><driver name='qemu' type='raw'/><source file='{folder}/catena'/><backingStore/>\
                 <target dev='vda' bus='virtio'/>{flags}</disk>"
            );
            let document = domain(&disk, "");
            let mut ours = grants(&document, &host())[0]
                .apparmor
                .as_ref()
                .map_or(Vec::new(), access::Profile::escaped);
            ours.sort();
            // It gives up at what it refuses, and names that.
            let mut theirs = helper(document.text(), Path::new(&format!("{folder}/catena")));
            theirs.retain(|line| !line.contains("error: "));
            assert_eq!(ours, theirs, "{disk}");
        }
    }
}

#[test]
fn a_name_that_apparmor_takes_for_a_pattern_is_told() {
    let folder = folder();
    folder.img("create -q -f raw a[b].raw 1M");
    let found = of_image(&folder.file("a[b].raw"), false);
    let profile = found[0].apparmor.as_ref().unwrap();
    assert!(profile.is_misread());
    let rule = format!("\"{}/a\\[b\\].raw\" rwk,", folder.path().display());
    assert_eq!(profile.escaped(), [rule]);
}

#[test]
fn selinux_labels_follow_the_rules() {
    let folder = folder();
    folder.img("create -q -f raw base 1M");
    folder.img("create -q -f qcow2 -b base -F raw top");
    let label = |driver: &str, flags: &str, source: &str, beside: &str, layer: usize| {
        let file = if driver == "raw" { "base" } else { "top" };
        let devices = format!(
            "<disk type='file'><driver name='qemu' type='{driver}'/><source file='{}'>{source}</source>\
             <target dev='vda' bus='virtio'/>{flags}</disk>",
            folder.file(file).display()
        );
        grants(&domain(&devices, beside), &host())[layer]
            .selinux
            .as_ref()
            .map(|label| (label.context.clone(), label.drawn))
            .map_err(|kept| *kept)
    };
    let fixed = |kind: &str| Ok((format!("system_u:object_r:{kind}:s0"), false));
    let image = "system_u:object_r:svirt_image_t:s0".to_owned();
    assert_eq!(label("qcow2", "", "", "", 0), Ok((image, true)));
    assert_eq!(label("qcow2", "", "", "", 1), fixed("virt_content_t"));
    assert_eq!(label("qcow2", "<readonly/>", "", "", 0), fixed("virt_content_t"));
    assert_eq!(label("raw", "<shareable/>", "", "", 0), fixed("svirt_image_t"));
    let own = "<seclabel model='selinux'><label>a:b:c:s0</label></seclabel>";
    assert_eq!(label("qcow2", "", own, "", 1), Ok(("a:b:c:s0".to_owned(), false)));
    let kept = "<seclabel model='selinux' relabel='no'/>";
    assert_eq!(label("qcow2", "", kept, "", 1), Err(Kept::Image));
    let given = "<seclabel type='static' model='selinux' relabel='yes'><label>u:r:svirt_t:s0:c1,c2</label></seclabel>";
    assert_eq!(
        label("qcow2", "", "", given, 0),
        Ok(("system_u:object_r:svirt_image_t:s0:c1,c2".to_owned(), false))
    );
    let none = "<seclabel type='none' model='selinux'/>";
    assert_eq!(label("qcow2", "", "", none, 0), Err(Kept::Domain));
}

#[test]
fn what_is_opened_beside_a_layer_is_listed_and_granted_by_nobody() {
    let disk = "<disk type='network'><driver name='qemu' type='raw'/><source protocol='nbd' name='x'>\
                <host transport='unix' socket='/run/nbd.sock'/></source><target dev='vda' bus='virtio'/></disk>";
    let found = grants(&domain(disk, ""), &host());
    let [image, socket] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(image.owner, Err(Kept::Elsewhere));
    assert_eq!(
        (socket.role, socket.path()),
        (Role::Socket, Some(Path::new("/run/nbd.sock")))
    );
    assert!(socket.access.contains(Access::WRITE));
    assert_eq!(socket.apparmor, Err(Kept::Unseen));
}

/// What is opened beside the chain of a domain's first disk.
fn beside(document: &Document, policy: &Policy) -> Vec<Grant> {
    let disk = &document.disks[0];
    let chain = disk.chain(policy).unwrap();
    let name = document.name.as_deref();
    access::beside(disk, &chain, name, policy, &document.seclabels, &host()).unwrap()
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = path.metadata().unwrap();
    (metadata.uid(), metadata.gid())
}

fn ids(grant: &Grant) -> (u32, u32) {
    let ids = grant.owner.as_ref().unwrap().ids;
    (ids.uid, ids.gid)
}

#[test]
fn the_overlay_of_a_transient_disk_is_libvirts_own_and_gets_its_own_owner() {
    let daemon = Daemon::start_unprivileged().unwrap();
    let folder = folder();
    folder.img("create -q -f qcow2 top.qcow2 1M");
    // What the image's label says holds for the image alone.
    let label = "<seclabel model='dac'><label>+0:+0</label></seclabel>";
    let disk = format!(
        "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'>{label}</source><target dev='vda' bus='virtio'/>\
         <transient/></disk>",
        folder.file("top.qcow2").display()
    );
    let document = domain(&disk, "");
    let found = beside(&document, &Policy::libvirt());
    let [overlay] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!(overlay.role, Role::Transient);
    assert_eq!(
        overlay.path(),
        Some(folder.file("top.qcow2.TRANSIENT-g").as_path())
    );
    assert!(!overlay.looked_at && overlay.obstacles(&user()).started.is_empty());
    assert_eq!(overlay.lock.lease, access::Lease::Exclusive);
    let profile = overlay.apparmor.as_ref().unwrap();
    assert_eq!(profile.letters(), "rwk");
    std::fs::set_permissions(folder.file("top.qcow2"), std::fs::Permissions::from_mode(0o666)).unwrap();
    daemon.define("g", &Guest::with(disk));
    daemon.virsh("start --paused g").unwrap().unwrap();
    let seen = overlay.path().map(owner);
    let image = owner(&folder.file("top.qcow2"));
    daemon.virsh("destroy g").unwrap().unwrap();
    assert_eq!(seen, Some(ids(overlay)));
    assert_eq!(image, ids(&grants(&document, &host())[0]));
    assert!(!overlay.path().unwrap().exists());
}

#[test]
fn where_a_disk_is_copied_to_is_given_to_qemu_while_that_runs() {
    let daemon = Daemon::start_unprivileged().unwrap();
    let folder = folder();
    folder.img("create -q -f qcow2 top.qcow2 1M");
    folder.img("create -q -f qcow2 copy.qcow2 1M");
    let disk = format!(
        "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{}'/><target dev='vda' bus='virtio'/></disk>",
        folder.file("top.qcow2").display()
    );
    daemon.define("g", &Guest::with(disk));
    let copy = folder.file("copy.qcow2");
    daemon
        .virsh(&format!(
            "start --paused g; blockcopy g vda {} --format qcow2 --reuse-external --transient-job",
            copy.display()
        ))
        .unwrap()
        .unwrap();
    let live = daemon.virsh("dumpxml g").unwrap().unwrap();
    let seen = owner(&copy);
    daemon.virsh("destroy g").unwrap().unwrap();
    let (_, rest) = live.split_once("<uuid>").unwrap();
    let uuid = rest.get(..36).unwrap();
    let document = Document::parse(live.replace(uuid, UUID)).unwrap();
    let found = beside(&document, &Policy::libvirt());
    let [target] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!((target.role, target.path()), (Role::Copy, Some(copy.as_path())));
    assert_eq!(seen, ids(target));
    let rules = target.apparmor.as_ref().unwrap().escaped();
    // At its start a guest has no such rule; libvirt adds it when the job begins.
    assert_eq!(helper(document.text(), &copy), Vec::<String>::new());
    let begun = helper_with(document.text(), &copy, &["-F", copy.to_str().unwrap()]);
    assert_eq!(rules, begun);
}

#[test]
fn the_files_of_a_vmdk_are_listed_and_granted_by_nobody() {
    let daemon = Daemon::start_unprivileged().unwrap();
    let folder = folder();
    for (name, variant, files) in [
        ("flat.vmdk", "monolithicFlat", vec!["flat-flat.vmdk"]),
        (
            "split.vmdk",
            "twoGbMaxExtentSparse",
            vec!["split-s001.vmdk", "split-s002.vmdk"],
        ),
        ("one.vmdk", "monolithicSparse", vec![]),
        ("stream.vmdk", "streamOptimized", vec![]),
    ] {
        let size = if files.len() == 2 { "3G" } else { "1M" };
        folder.img(&format!("create -q -f vmdk -o subformat={variant} {name} {size}"));
        let document = vmdk(&folder, name);
        let found = beside(&document, &Policy::libvirt());
        let paths: Vec<_> = found
            .iter()
            .map(|grant| grant.path().unwrap().to_owned())
            .collect();
        let files: Vec<_> = files.into_iter().map(|file| folder.file(file)).collect();
        assert_eq!(paths, files, "{name}");
        for grant in &found {
            assert_eq!((grant.role, grant.owner), (Role::Extent, Err(Kept::Unseen)));
            assert!(grant.access.contains(Access::WRITE));
        }
        let rules = helper(document.text(), folder.path());
        assert!(
            files
                .iter()
                .all(|file| !rules.iter().any(|rule| rule.contains(file.to_str().unwrap())))
        );
        let Some(extent) = files.first() else { continue };
        // libvirt gives the descriptor to QEMU's user, who cannot open what it names.
        let disk = document.text().get(document.disks[0].span.clone()).unwrap();
        let said = daemon.running(disk, "", || ()).unwrap_err();
        assert!(
            said.contains("Permission denied") && said.contains(extent.to_str().unwrap()),
            "{said}"
        );
        assert!(!found[0].obstacles(&user()).started.is_empty());
        for file in &files {
            chown(file, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        assert!(found[0].obstacles(&user()).started.is_empty());
        assert_eq!(daemon.running(disk, "", || owner(extent)), Ok((NOBODY, NOBODY)));
    }
    // Whoever made the image could name anything: nothing is done about it.
    let text = std::fs::read_to_string(folder.file("flat.vmdk")).unwrap();
    let text = text.replace("flat-flat.vmdk", "/root/secret");
    std::fs::write(folder.file("flat.vmdk"), text).unwrap();
    let found = beside(&vmdk(&folder, "flat.vmdk"), &Policy::libvirt());
    assert_eq!(found[0].path(), Some(Path::new("/root/secret")));
    let plan = change::plan(&found, &user(), change::How::Lists).unwrap();
    assert!(plan.is_empty() && !plan.left.is_empty(), "{plan:?}");
}

/// A domain with a disk on a VMDK.
fn vmdk(folder: &Folder, name: &str) -> Document {
    let disk = format!(
        "<disk type='file'><driver name='qemu' type='vmdk'/><source file='{}'/><backingStore/>\
         <target dev='vda' bus='virtio'/></disk>",
        folder.file(name).display()
    );
    domain(&disk, "")
}

/// Folders within folders with modes and lists as it happens, and an image at the end of them.
fn closed(dice: &mut Dice, folder: &Folder) -> PathBuf {
    let mut path = folder.path().to_owned();
    let mode = |dice: &mut Dice, path: &Path, modes: &[u32]| {
        let ids = [0, NOBODY, 7];
        chown(path, Some(*dice.one_of(&ids)), Some(*dice.one_of(&ids))).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(*dice.one_of(modes))).unwrap();
        if dice.chance(30) {
            let entry = format!(
                "{}:{}:{}",
                dice.one_of(&["u", "g"]),
                dice.one_of(&[NOBODY, 7]),
                dice.one_of(&["rwx", "r", "x", "-", "rw"])
            );
            folder.run("setfacl", &["-m", &entry, path.to_str().unwrap()]);
        }
    };
    let mut folders = Vec::new();
    for number in 0..dice.within(1..4) {
        path = path.join(format!("f{number}"));
        std::fs::create_dir(&path).unwrap();
        folders.push(path.clone());
    }
    let image = path.join("image");
    std::fs::write(&image, vec![0; 4096]).unwrap();
    mode(dice, &image, &[0o644, 0o600, 0o660, 0o040, 0o666, 0o4711]);
    let mut name = image.clone();
    if dice.chance(30) {
        name = path.join("link");
        std::os::unix::fs::symlink(&image, &name).unwrap();
    }
    for folder in folders.iter().rev() {
        mode(dice, folder, &[0o755, 0o755, 0o750, 0o700, 0o711, 0o010]);
    }
    name
}

/// Whether the user opens it so, really.
fn opens(path: &Path, write: bool) -> bool {
    let mode = if write { "exec 3<>\"$0\"" } else { "exec 3<\"$0\"" };
    Command::new("setpriv")
        .args([
            "--reuid",
            &NOBODY.to_string(),
            "--regid",
            &NOBODY.to_string(),
            "--clear-groups",
        ])
        .args(["sh", "-c", mode])
        .arg(path)
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

fn user() -> User {
    User::of_process(NOBODY, NOBODY)
}

/// What is granted for an image that is the active layer, and read only if that is said.
fn of_image(path: &Path, readonly: bool) -> Vec<Grant> {
    let flags = if readonly { "<readonly/>" } else { "" };
    let disk = format!(
        "<disk type='file'><driver name='qemu' type='raw'/><source file='{}'/><target dev='vda' bus='virtio'/>{flags}</disk>",
        path.display()
    );
    grants(&domain(&disk, ""), &host())
}

#[test]
fn a_user_opens_just_what_nothing_stands_in_the_way_of() {
    for seed in 0..150 {
        let mut dice = Dice::new(seed);
        let folder = folder();
        let name = closed(&mut dice, &folder);
        let readonly = dice.chance(50);
        let found = of_image(&name, readonly)[0].obstacles(&user());
        assert_eq!(
            found.now.is_empty(),
            opens(&name, !readonly),
            "seed {seed}: {found:?}"
        );
        chown(&name, Some(NOBODY), Some(NOBODY)).unwrap();
        assert_eq!(
            found.started.is_empty(),
            opens(&name, !readonly),
            "seed {seed}: {found:?}"
        );
    }
}

/// All there is to know of who may do what in a folder.
fn permissions(folder: &Folder) -> String {
    folder.run("getfacl", &["--absolute-names", "--numeric", "--recursive", "."])
}

#[test]
fn what_was_made_accessible_is_and_goes_back_to_what_it_was() {
    for seed in 0..100 {
        let mut dice = Dice::new(seed);
        let folder = folder();
        let beside = Folder::new();
        let name = closed(&mut dice, &folder);
        let readonly = dice.chance(50);
        let how = *dice.one_of(&[change::How::Owners, change::How::Lists]);
        let before = permissions(&folder);
        let found = of_image(&name, readonly);
        let plan = change::plan(&found, &user(), how).unwrap();
        let wrote = opens(&name, true);
        assert_eq!(
            permissions(&folder),
            before,
            "seed {seed}: a plan changes nothing"
        );
        let way_back = beside.file("undo");
        plan.execute(&way_back).unwrap();
        assert_eq!(
            opens(&name, !readonly),
            plan.left.is_empty(),
            "seed {seed}: {how:?} {plan:?}"
        );
        if how == change::How::Lists {
            assert!(plan.left.is_empty(), "seed {seed}: {plan:?}");
        }
        if readonly && plan.left.is_empty() && std::fs::metadata(&name).unwrap().uid() != NOBODY {
            // Who could write before can write still.
            let could = wrote || of_image(&name, false)[0].obstacles(&user()).now.is_empty();
            assert_eq!(opens(&name, true), could, "seed {seed}");
        }
        // Nothing is left to do.
        let again = change::plan(&found, &user(), how).unwrap();
        assert!(again.is_empty(), "seed {seed}: {again:?}");
        let undone = undo::undo(&way_back).unwrap();
        assert!(undone.left.is_empty(), "seed {seed}: {undone:?}");
        assert_eq!(permissions(&folder), before, "seed {seed}: {how:?}");
        assert!(!way_back.exists());
    }
}
