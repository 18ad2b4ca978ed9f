//! Tests of every executor, on software Vulkan or the GPU under test, with wgpu's bounds checks and without.

use super::*;
use crate::artifact::{Tensor, TensorType};
use crate::device;
use crate::exec::Executor;
use crate::exec::tests::{self, Tested};
use crate::testing::real_size::gpu_under_test;

impl Tested for Gpu {
    fn width(&self, id: ActId) -> usize {
        self.activations[id.0].width
    }
    fn read(&mut self, id: ActId) -> Vec<f32> {
        // More than one activation of a step may be read.
        let again = self.step.as_ref().map(|step| Recording { dispatches: Vec::new(), ..*step });
        let values = self.finish(id).unwrap();
        self.step = again;
        values
    }
    fn write(&mut self, id: ActId, values: &[f32]) {
        self.queue.write_buffer(&self.activations[id.0].buffer, 0, bytemuck::cast_slice(values));
    }
}

fn make(sizes: Sizes, checked: bool, family: KernelFamily) -> Gpu {
    let mut gpu = Gpu::new(device::open(&gpu_under_test()).unwrap(), sizes, None, checked).unwrap();
    gpu.family = Some(family);
    gpu
}

/// Both families of kernels, with and without checks.
fn every(test: impl Fn(bool, KernelFamily)) {
    for family in KernelFamily::ALL {
        [false, true].into_iter().for_each(|checked| test(checked, family));
    }
}

#[test]
fn every_kernel_on_rows_is_what_its_reference_is() {
    [false, true]
        .into_iter()
        .for_each(|checked| tests::operations_on_rows(|sizes| make(sizes, checked, KernelFamily::Lanes)));
}

#[test]
fn every_kernel_on_weights_is_what_its_reference_is_for_every_type() {
    every(|checked, family| tests::operations_on_weights(|sizes| make(sizes, checked, family)));
}

#[test]
fn products_of_random_shapes_are_what_their_references_are() {
    every(|checked, family| tests::products_of_random_shapes(|sizes| make(sizes, checked, family)));
}

#[test]
fn rotation_and_attention_are_what_their_references_are() {
    [false, true]
        .into_iter()
        .for_each(|checked| tests::rotation_and_attention(|sizes| make(sizes, checked, KernelFamily::Lanes)));
}

#[test]
fn attention_far_back_is_what_its_reference_is() {
    every(|checked, family| tests::attention_far_back(|sizes| make(sizes, checked, family)));
}

#[test]
fn a_step_outside_of_the_sizes_is_refused() {
    tests::steps_outside_of_the_sizes(|sizes| make(sizes, false, KernelFamily::Lanes));
}

#[test]
fn a_whole_model_gives_the_same_logits_on_both() {
    KernelFamily::ALL.into_iter().for_each(|family| tests::a_whole_model(|sizes| make(sizes, false, family)));
}

#[test]
fn a_row_is_the_same_alone_and_in_company() {
    KernelFamily::ALL
        .into_iter()
        .for_each(|family| tests::the_same_alone_and_in_company(|sizes| make(sizes, false, family)));
}

#[test]
fn what_was_measured_is_kept_for_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = tests::sizes();
    let data = vec![0; 64 * 96 * 4];
    let part = Tensor { name: "t", kind: TensorType::F32, columns: 96, rows: 64, data: &data };
    let begun = |folder: &std::path::Path| {
        let opened = device::open(&gpu_under_test()).unwrap();
        let mut gpu = Gpu::new(opened, sizes, Some(folder.to_owned()), false).unwrap();
        gpu.matrix(&[part]).unwrap();
        gpu.ready().unwrap();
        assert_eq!(gpu.family, None);
        gpu.begin(&tests::batch(&sizes)).unwrap();
        gpu
    };
    let first = begun(folder.path());
    let kept = first.result_path().unwrap();
    let chosen = first.family.unwrap();
    assert_eq!(std::fs::read(&kept).unwrap(), chosen.name().as_bytes());
    // A stored result is used, and an unknown one is measured again.
    for family in KernelFamily::ALL {
        std::fs::write(&kept, family.name()).unwrap();
        assert_eq!(begun(folder.path()).family, Some(family));
    }
    std::fs::write(&kept, "neither").unwrap();
    let again = begun(folder.path()).family.unwrap();
    assert_eq!(std::fs::read(&kept).unwrap(), again.name().as_bytes());
}
