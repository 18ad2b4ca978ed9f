//! What every executor is held to, on software Vulkan, with wgpu's bounds checks and without.

use super::*;
use crate::device::{self, DeviceChoice};
use crate::exec::Executor;
use crate::exec::tests::{self, Tested};

impl Tested for Gpu {
    fn width(&self, id: ActId) -> usize {
        self.places[id.0].width
    }
    fn read(&mut self, id: ActId) -> Vec<f32> {
        self.finish(id).unwrap()
    }
    fn write(&mut self, id: ActId, values: &[f32]) {
        self.queue.write_buffer(&self.places[id.0].buffer, 0, bytemuck::cast_slice(values));
    }
}

fn make(sizes: Sizes, checked: bool) -> Gpu {
    Gpu::new(device::open(&DeviceChoice::Software).unwrap(), sizes, None, checked).unwrap()
}

#[test]
fn every_kernel_on_rows_is_what_its_reference_is() {
    [false, true].into_iter().for_each(|checked| tests::operations_on_rows(|sizes| make(sizes, checked)));
}

#[test]
fn every_kernel_on_weights_is_what_its_reference_is_for_every_type() {
    [false, true].into_iter().for_each(|checked| tests::operations_on_weights(|sizes| make(sizes, checked)));
}

#[test]
fn rotation_and_attention_are_what_their_references_are() {
    [false, true].into_iter().for_each(|checked| tests::rotation_and_attention(|sizes| make(sizes, checked)));
}

#[test]
fn a_step_outside_of_the_sizes_is_refused() {
    tests::steps_outside_of_the_sizes(|sizes| make(sizes, false));
}

#[test]
fn a_whole_model_gives_the_same_logits_on_both() {
    tests::a_whole_model(|sizes| make(sizes, false));
}
