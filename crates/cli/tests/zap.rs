//! `slat zap`, as a user runs it.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod command;

use command::slat;
use serde_json::Value;

fn zap(args: &[&str]) -> (i32, String, String) {
    slat(&[&["zap"][..], args].concat())
}

fn json(args: &[&str]) -> Value {
    let (code, out, err) = zap(&[args, &["--json"]].concat());
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

/// The numbers of one scene's model: zapped, entries, tables, others back, own back, faults.
fn numbers(scene: &Value) -> Vec<u64> {
    let cost = &scene["costs"][0];
    let names = [
        "leaves_zapped",
        "entries_changed",
        "tables_zapped",
        "others_back",
        "own_back",
        "faults",
    ];
    names.map(|name| cost[name].as_u64().unwrap()).to_vec()
}

#[test]
fn the_table_has_what_was_counted() {
    let scenes = json(&["--others", "2M", "--operation", "delete,move"]);
    let scenes = scenes.as_array().unwrap();
    assert_eq!(scenes.len(), 8);
    // All of 5 tables are taken apart entry by entry, after their links and leaves.
    let all = 16 + 512 + 1;
    assert_eq!(numbers(&scenes[0]), [all, all + 5 * 513, 5, 513, 0, 513]);
    for leaves in &scenes[1..4] {
        assert_eq!(numbers(leaves), [16, 16, 0, 0, 0, 0]);
    }
    assert_eq!(numbers(&scenes[4]), [all, all + 5 * 513, 5, 513, 16, 529]);
    assert_eq!(numbers(&scenes[5]), [16, 16, 0, 0, 16, 16]);
    let flagged = scenes[3]["zap"].as_str().unwrap();
    assert!(flagged.contains("KVM_MEM_ZAP_LEAFS_ONLY"), "{flagged}");
    let (code, text, _) = zap(&["--others", "2M"]);
    assert_eq!(code, 0);
    assert!(text.contains("operation  policy"), "{text}");
}

#[test]
fn roots_and_large_leaves_count() {
    let scenes = json(&["--others", "2M", "--policy", "quirk-on", "--roots", "1,2,4"]);
    let scenes = scenes.as_array().unwrap();
    for (scene, roots) in scenes.iter().zip([1, 2, 4]) {
        assert_eq!(numbers(scene)[0], 529 * roots);
        assert_eq!(numbers(scene)[5], 513 * roots);
    }
    let args = [
        "--leaf",
        "2M",
        "--size",
        "64M",
        "--others",
        "1G",
        "--policy",
        "quirk-on,quirk-off",
    ];
    let scenes = json(&args);
    assert_eq!(numbers(&scenes[0])[0], 32 + 512 + 1);
    assert_eq!(numbers(&scenes[1])[..2], [32, 32]);
}

#[test]
fn model_and_kernel_count_the_same() {
    let args = [
        "--on",
        "both",
        "--operation",
        "delete,move",
        "--size",
        "64K",
        "--others",
        "0,2M",
    ];
    let (code, text, err) = zap(&args);
    if code == 2 {
        return println!("skipped: {err}");
    }
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("model and kernel count the same in"),
        "{text}"
    );
}

#[test]
fn advice_has_reasons() {
    let (code, text, _) = zap(&["--advice", "--others", "2M", "--policy", "quirk-on"]);
    assert_eq!(code, 0);
    assert!(
        text.contains("since with all roots, others fault 513 pages in again"),
        "{text}"
    );
    assert!(
        text.contains("the kernel zaps all roots of the VM"),
        "{text}"
    );
    let value = json(&[
        "--advice",
        "--size",
        "64M",
        "--others",
        "0",
        "--policy",
        "quirk-off",
    ]);
    let stall = &value[0]["advice"][2];
    assert_eq!(stall["cheaper"], "all roots");
    assert_eq!(stall["reasons"][0]["code"], "faults-wait-for-leaves");
    assert_eq!(stall["taken"], false);
}

#[test]
fn another_thread_faults_meanwhile() {
    let value = json(&[
        "--threads",
        "--size",
        "16M",
        "--others",
        "0",
        "--policy",
        "quirk-on,quirk-off",
    ]);
    assert_eq!(value.as_array().unwrap().len(), 2);
    let (code, _, err) = zap(&["--threads", "--operation", "log-on"]);
    assert_eq!((code, err.as_str()), (2, "slat: log-on zaps nothing\n"));
}

/// The figures of docs/zap.md: those of costs are measured, the line of the advisor is the same on every machine.
#[test]
fn figures_are_drawn() {
    let directory = format!("{}/figures", env!("CARGO_TARGET_TMPDIR"));
    let (code, text, err) = zap(&["--on", "model", "--plot", &directory]);
    assert_eq!((code, err.as_str()), (0, ""), "{text}");
    let drawn = |name: &str| std::fs::read_to_string(format!("{directory}/{name}")).unwrap();
    let costs = drawn("zap-cost-model-tdp.svg");
    assert!(costs.starts_with("<svg"), "{costs}");
    // A line for each policy, with faults and without.
    assert!(costs.matches("<polyline").count() >= 4, "{costs}");
    let shown = include_str!("../../../docs/zap-crossover.svg");
    assert_eq!(drawn("zap-crossover.svg"), shown);
}

#[test]
fn costs_grow_by_their_laws() {
    let (code, text, err) = zap(&["--scaling"]);
    assert_eq!((code, err.as_str()), (0, ""), "{text}");
    assert!(text.contains("costs grow by their law."), "{text}");
    assert!(!text.contains("BROKEN"), "{text}");
}

#[test]
fn wrong_input_is_named() {
    let wrong = [
        (vec!["--size", "5"], "5 bytes are no number of pages"),
        (
            vec!["--policy", "x"],
            "none of quirk-on, quirk-off, protected, flag",
        ),
        (
            vec!["--operation", "zap"],
            "none of delete, move, log-on, log-off",
        ),
        (vec!["--leaf", "2M"], "not a multiple of a leaf of 2M"),
        (vec!["--roots", "5", "--vcpus", "8"], "5 roots by 8 vCPUs"),
        (vec!["--full"], "--scaling"),
    ];
    for (args, part) in wrong {
        let (code, _, err) = zap(&args);
        assert_eq!(code, 2, "{args:?}");
        assert!(err.contains(part), "{args:?}: {err}");
    }
}
