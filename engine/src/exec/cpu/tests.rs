//! Tests of every executor, on every vector unit that this processor has, alone and on several threads.

use super::*;
use crate::exec::tests::{self, Tested};

impl Tested for Cpu {
    fn width(&self, id: ActId) -> usize {
        self.activations[id.0].width
    }
    fn read(&mut self, id: ActId) -> Vec<f32> {
        self.finish(id).unwrap()
    }
    fn write(&mut self, id: ActId, values: &[f32]) {
        let place = self.activations[id.0].values;
        assert!(values.len() <= place.len());
        // SAFETY: the allocation has as many values, and nothing else uses them now.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), place.at(), values.len()) };
    }
}

fn each(test: impl Fn(&dyn Fn(Sizes) -> Cpu)) {
    for unit in CpuUnit::ALL.into_iter().filter(|unit| unit.is_here()) {
        for threads in [1, 3] {
            println!("{}, {threads} threads", unit.name());
            test(&|sizes| Cpu::new(unit, threads, sizes).unwrap());
        }
    }
}

#[test]
fn every_kernel_on_rows_is_what_its_reference_is() {
    each(|make| tests::operations_on_rows(make));
}

#[test]
fn every_kernel_on_weights_is_what_its_reference_is_for_every_type() {
    each(|make| tests::operations_on_weights(make));
}

#[test]
fn products_of_random_shapes_are_what_their_references_are() {
    each(|make| tests::products_of_random_shapes(make));
}

#[test]
fn rotation_and_attention_are_what_their_references_are() {
    each(|make| tests::rotation_and_attention(make));
}

#[test]
fn attention_far_back_is_what_its_reference_is() {
    each(|make| tests::attention_far_back(make));
}

#[test]
fn a_step_outside_of_the_sizes_is_refused() {
    each(|make| tests::steps_outside_of_the_sizes(make));
}

#[test]
fn a_whole_model_gives_the_same_logits_as_the_reference() {
    each(|make| tests::a_whole_model(make));
}

#[test]
fn a_row_gives_the_same_logits_alone_and_in_company() {
    each(|make| tests::the_same_alone_and_in_company(make));
}
