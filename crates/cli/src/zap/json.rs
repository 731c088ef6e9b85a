//! Scenes and costs as JSON.

use serde_json::{Value, json};
use slat_memslot::PAGE_SIZE;
use slat_vmm::zap::Scene;

use super::measured::Measured;

pub(super) fn all(measured: &[Measured]) -> Value {
    measured.iter().map(one).collect()
}

pub(super) fn scene(scene: &Scene) -> Value {
    json!({
        "operation": scene.operation.name(),
        "policy": scene.policy.name(),
        "size": scene.pages.raw() * PAGE_SIZE,
        "mapped": scene.touched.raw() * PAGE_SIZE,
        "leaf": scene.leaf.to_string(),
        "others": scene.others.raw() * PAGE_SIZE,
        "roots": scene.roots,
        "vcpus": scene.vcpus,
    })
}

fn one(measured: &Measured) -> Value {
    let zap = measured.model.as_ref().and_then(|cost| cost.zap);
    let lines = measured.lines();
    let costs = lines.iter().map(|line| {
        json!({
            "who": line.who,
            "leaves_zapped": line.zapped,
            "entries_changed": line.entries,
            "tables_zapped": line.tables,
            "others_back": line.others_back,
            "own_back": line.own_back,
            "faults": line.faults,
            "zap_us": line.zap_us,
            "back_us": line.again_us,
        })
    });
    json!({
        "scene": scene(&measured.scene),
        "zap": zap.map(|zap| zap.to_string()),
        "costs": costs.collect::<Vec<Value>>(),
        "agrees": measured.agrees(),
    })
}
