//! What libvirt gives QEMU for a guest, beside what we give.

use catena_testkit::libvirt::Arguments;
use catena_virt::blockdev::Tree;
use serde_json::Value;

/// What is compared of objects: where a secret's content comes from is not.
fn objects(given: impl Iterator<Item = Value>, used: &[String]) -> Vec<String> {
    let mut objects: Vec<_> = given
        .filter_map(|mut object| {
            let kind = object["qom-type"].as_str()?.to_owned();
            let id = object["id"].as_str()?.to_owned();
            let fields = object.as_object_mut()?;
            match kind.as_str() {
                "secret" if id == "masterKey0" => return None,
                "secret" => fields.retain(|key, _| key == "qom-type" || key == "id"),
                // A helper that libvirt runs listens in a folder of its own.
                "pr-manager-helper" if id == "pr-helper0" => fields.retain(|key, _| key != "path"),
                "memory-backend-ram" | "memory-backend-memfd" => return None,
                // libvirt has all of the domain's, also those that no disk is in.
                "throttle-group" if !used.iter().any(|node| node.contains(&format!("\"{id}\""))) => {
                    return None;
                }
                _ => {}
            }
            Some(object.to_string())
        })
        .collect();
    objects.sort();
    objects
}

fn parsed(values: &[String]) -> impl Iterator<Item = Value> {
    values.iter().map(|value| serde_json::from_str(value).unwrap())
}

/// How the names of the nodes of images begin that libvirt was handed over open, and we have not.
pub fn handed_over(arguments: &Arguments) -> Vec<String> {
    let nodes = arguments.values("-blockdev");
    let names = parsed(&nodes).filter_map(|node| {
        node["filename"].as_str()?.strip_prefix("/dev/fdset/")?;
        Some(node["node-name"].as_str()?.strip_suffix("storage")?.to_owned())
    });
    names.collect()
}

/// Whether what we give QEMU is what libvirt gave it.
pub fn compare(trees: &[Tree], arguments: &Arguments) -> Result<(), String> {
    let handed_over = handed_over(arguments);
    let is_ours = |node: &str| !handed_over.iter().any(|name| node.contains(&format!("\"{name}")));
    let ours: Vec<_> = trees
        .iter()
        .flat_map(|tree| &tree.nodes)
        .map(Value::to_string)
        .collect();
    let mut theirs = arguments.values("-blockdev");
    theirs.retain(|node| is_ours(node));
    if ours != theirs {
        return Err(format!("our nodes are {ours:#?}\nlibvirt's {theirs:#?}"));
    }
    let mut of_trees: Vec<_> = trees.iter().flat_map(|tree| tree.objects.clone()).collect();
    of_trees.sort_by_key(Value::to_string);
    of_trees.dedup();
    let (ours, theirs) = (
        objects(of_trees.into_iter(), &ours),
        objects(parsed(&arguments.values("-object")), &ours),
    );
    if ours != theirs {
        return Err(format!("our objects are {ours:#?}\nlibvirt's {theirs:#?}"));
    }
    let ours: Vec<_> = trees.iter().map(|tree| tree.drive.clone()).collect();
    let mut devices = arguments.values("-device");
    devices.retain(|device| is_ours(device));
    let theirs: Vec<_> = parsed(&devices)
        .filter_map(|device| Some(device.get("drive")?.as_str()?.to_owned()))
        .collect();
    if ours != theirs {
        return Err(format!("our drives are {ours:?}\nlibvirt's {theirs:?}"));
    }
    Ok(())
}
