//! Every op as a sequence of kernels.

use super::head::Head;
use super::*;
use medft_dsl::plan::Precision;
use medft_kernels::embed::{self, Runs, Table};
use medft_kernels::norm::{self, GainGradient};
use medft_kernels::{elementwise, optimizer, sample};

impl Backend for Cuda {
    type Act = Act;
    type Float = Float;
    type Matrix = Matrix;
    type Loader = Loader;
    type Batch = Batch;
    type Cache = Cache;
    type Recording = Recording;
    type Arena = Arena;

    fn name(&self) -> String {
        format!(
            "GPU {}, {}",
            self.0.device.ordinal(),
            self.0.device.gpu().name
        )
    }

    fn kind(&self) -> &'static str {
        "cuda"
    }

    fn finish(&self) -> Result<(), BackendError> {
        let waited = self.0.device.synchronize();
        if let Some(fault) = lock(&self.0.fault).take() {
            return Err(fault);
        }
        waited.map_err(|e| self.error("", e))
    }

    fn upload(&self, batch: Packed) -> Result<Batch, BackendError> {
        let batch = Batch::upload(&self.0.device, &self.0.batches, batch);
        batch.map_err(|e| self.error("the tables of a batch", e))
    }

    fn rows(&self, batch: &Batch) -> usize {
        batch.packed.tokens()
    }

    fn reserve(&self, passes: &Passes) -> Result<(), BackendError> {
        let reserved = self.make_room(passes);
        reserved.map_err(|e| self.error("what the ops of a pass borrow", e))
    }

    fn arena_bytes(&self, need: &Need) -> u64 {
        Arena::bytes(need) as u64
    }

    fn arena(&self, what: &'static str, need: &Need) -> Result<Arena, BackendError> {
        Arena::new(&self.0.device, need).map_err(|e| self.error(what, e))
    }

    fn act(&self, arena: &mut Arena, len: usize) -> Act {
        arena.carve(len)
    }

    fn float(&self, arena: &mut Arena, len: usize) -> Float {
        arena.carve(len)
    }

    fn floats(&self, what: &'static str, len: usize) -> Result<Float, BackendError> {
        let floats = Float::alloc(&self.0.device, len).map_err(|e| self.error(what, e))?;
        self.zero_range(&floats);
        Ok(floats)
    }

    fn write(&self, to: &mut Float, offset: usize, from: &[f32]) {
        self.attempt(|| self.0.device.write(to.ptr().at(offset), from));
    }

    fn read(&self, from: &Float, slot: Slot) -> Result<Vec<f32>, BackendError> {
        let mut to = vec![0.0; slot.len];
        let read = self.0.device.read(from.ptr().at(slot.offset), &mut to);
        self.finish()?;
        read.map_err(|e| self.error("", e))?;
        Ok(to)
    }

    fn matrix(
        &self,
        loader: &mut Loader,
        tensors: &[Tensor],
        precision: Precision,
        double_quant: bool,
    ) -> Result<Matrix, BackendError> {
        let loaded = Matrix::load(&self.0.device, loader, tensors, precision, double_quant);
        loaded.map_err(|e| match e {
            LoadError::Tensor(e) => e,
            LoadError::Gpu(e) => self.error("a weight matrix of the model", e),
        })
    }

    fn matrix_values(&self, matrix: &Matrix) -> Result<Vec<f32>, BackendError> {
        matrix
            .values(&self.0.device)
            .map_err(|e| self.error("a copy of a weight matrix", e))
    }

    fn cache(
        &self,
        layers: usize,
        slots: usize,
        capacity: usize,
        heads: &Heads,
    ) -> Result<Cache, BackendError> {
        Cache::new(&self.0.device, layers, slots, capacity, heads)
            .map_err(|e| self.error("the KV cache", e))
    }

    fn step(
        &self,
        recording: &mut Recording,
        batch: &Batch,
        cache: Option<&mut Cache>,
        ops: impl FnOnce(Option<&mut Cache>),
    ) {
        self.recorded(recording, batch, cache, ops);
    }

    fn cache_compact(&self, cache: &mut Cache, keep: &[usize]) {
        self.attempt(|| cache.compact(&self.0.device, keep));
    }

    fn low_columns(&self, rank: usize) -> usize {
        super::linear::low_columns(rank)
    }

    fn embed(
        &self,
        table: &Weight<Cuda>,
        values: &Float,
        batch: &Batch,
        hidden: usize,
        x: &mut Act,
    ) {
        let d = &self.0.device;
        let (n, x) = (batch.packed.tokens(), x.ptr());
        self.attempt(|| match table {
            Weight::Trained(slot) => {
                let table = Table::F32(values.ptr().at(slot.offset));
                embed::forward(d, n, hidden, batch.ids, table, x)
            }
            Weight::Frozen(matrix) => match matrix.stored() {
                Stored::Bf16(table) => {
                    embed::forward(d, n, hidden, batch.ids, Table::Bf16(table), x)
                }
                Stored::Nf4(_) => Err(LaunchError::Unsupported("an embedding table in NF4".into())),
            },
        });
    }

    fn embed_backward(
        &self,
        table: Slot,
        grads: &mut Float,
        batch: &Batch,
        hidden: usize,
        dx: &Act,
    ) {
        let to = grads.ptr().at(table.offset);
        self.attempt(|| {
            let d = &self.0.device;
            let runs = Runs::of(&batch.packed.ids);
            let mut scratch = self.scratch();
            let [order, starts] = scratch.take(embed_bytes(batch.packed.tokens()))?;
            self.0.batches.copy(d, &runs.order, order.cast())?;
            self.0.batches.copy(d, &runs.starts, starts.cast())?;
            let (order, starts, ids) = (order.cast(), starts.cast(), batch.ids);
            embed::backward(d, runs.len(), hidden, ids, order, starts, dx.ptr(), to)
        });
    }

    fn rmsnorm(
        &self,
        gain: &Vector<Cuda>,
        values: &Float,
        eps: f32,
        rows: usize,
        hidden: usize,
        x: &Act,
        y: &mut Act,
        rstd: &mut Float,
    ) {
        let gain = self.vector(gain, values);
        self.attempt(|| {
            norm::forward(
                &self.0.device,
                rows,
                hidden,
                eps,
                x.ptr(),
                gain,
                y.ptr(),
                rstd.ptr(),
            )
        });
    }

    fn rmsnorm_backward(
        &self,
        gain: &Vector<Cuda>,
        values: &Float,
        grads: &mut Float,
        rows: usize,
        hidden: usize,
        x: &Act,
        rstd: &Float,
        dy: &Act,
        dx: &mut Act,
    ) {
        let d = &self.0.device;
        let weights = self.vector(gain, values);
        self.attempt(|| {
            let mut scratch = self.scratch();
            let trained = match gain {
                Vector::Frozen(..) => None,
                Vector::Trained(slot) => {
                    let [partials] = scratch.take([4 * norm::column_sum_scratch(rows, hidden)])?;
                    Some(GainGradient {
                        dgain: grads.ptr().at(slot.offset),
                        scratch: partials.cast(),
                    })
                }
            };
            norm::backward(
                d,
                rows,
                hidden,
                x.ptr(),
                rstd.ptr(),
                weights,
                dy.ptr(),
                dx.ptr(),
                trained,
            )
        });
    }

    fn linear(
        &self,
        group: &Group<Cuda>,
        values: &Float,
        batch: &Batch,
        rows: usize,
        x: &Act,
        epilogue: Epilogue<Cuda>,
        y: &mut Act,
        low: &mut Act,
    ) {
        self.attempt(|| self.linear_forward(group, values, batch, rows, x, epilogue, y, low));
    }

    fn linear_backward(
        &self,
        group: &Group<Cuda>,
        values: &Float,
        grads: &mut Float,
        batch: &Batch,
        rows: usize,
        x: &Act,
        low: &Act,
        dy: &Act,
        dx: Option<&mut Act>,
    ) {
        self.attempt(|| self.linear_gradients(group, values, grads, batch, rows, x, low, dy, dx));
    }

    fn attention(&self, heads: &Heads, batch: &Batch, qkv: &Act, out: &mut Act, lse: &mut Float) {
        self.attempt(|| self.attend(heads, batch, qkv, out.ptr(), lse.ptr()));
    }

    fn attention_backward(
        &self,
        heads: &Heads,
        batch: &Batch,
        qkv: &Act,
        out: &Act,
        lse: &Float,
        dout: &Act,
        dqkv: &mut Act,
    ) {
        self.attempt(|| self.attend_backward(heads, batch, qkv, out, lse, dout, dqkv));
    }

    fn attention_cached(
        &self,
        heads: &Heads,
        batch: &Batch,
        layer: usize,
        cache: &mut Cache,
        qkv: &Act,
        out: &mut Act,
    ) {
        self.attempt(|| self.attend_cached(heads, batch, layer, cache, qkv, out));
    }

    fn swiglu(&self, rows: usize, inner: usize, gate_up: &Act, h: &mut Act) {
        self.attempt(|| elementwise::swiglu(&self.0.device, rows, inner, gate_up.ptr(), h.ptr()));
    }

    fn swiglu_backward(
        &self,
        rows: usize,
        inner: usize,
        gate_up: &Act,
        dh: &Act,
        dgate_up: &mut Act,
    ) {
        let (gate_up, dh, to) = (gate_up.ptr(), dh.ptr(), dgate_up.ptr());
        self.attempt(|| {
            elementwise::swiglu_backward(&self.0.device, rows, inner, gate_up, dh, to, None)
        });
    }

    fn clear(&self, rows: usize, hidden: usize, x: &mut Act) {
        self.attempt(|| self.0.device.fill(x.ptr(), 0, rows * hidden));
    }

    fn add(&self, rows: usize, hidden: usize, dy: &Act, dx: &mut Act) {
        self.attempt(|| elementwise::add(&self.0.device, rows * hidden, dy.ptr(), dx.ptr()));
    }

    fn head_loss(
        &self,
        head: &Weight<Cuda>,
        values: &Float,
        batch: &Batch,
        hidden: usize,
        vocab: usize,
        x: &Act,
        losses: &mut Float,
        backward: Option<HeadBackward<Cuda>>,
    ) {
        let head = Head {
            weight: head,
            values,
            batch,
            hidden,
            vocab,
            x,
        };
        self.attempt(|| self.head_cross_entropy(&head, losses, backward));
    }

    fn head_logits(
        &self,
        head: &Weight<Cuda>,
        values: &Float,
        batch: &Batch,
        hidden: usize,
        vocab: usize,
        x: &Act,
        logits: &mut Float,
        at_row: usize,
    ) {
        let head = Head {
            weight: head,
            values,
            batch,
            hidden,
            vocab,
            x,
        };
        self.attempt(|| self.head_scores(&head, logits.ptr().at(at_row * vocab)));
    }

    fn sample(
        &self,
        sampling: &Sampling,
        rows: &[SampleRow],
        vocab: usize,
        logits: &mut Float,
    ) -> Result<Vec<u32>, BackendError> {
        let chosen = self.choose(sampling, rows, vocab, logits);
        self.finish()?;
        let chosen = chosen.map_err(|e| self.error("the buffers of the sampler", e))?;
        if chosen.contains(&sample::NO_TOKEN) {
            return Err(BackendError::NoToken { vocab });
        }
        Ok(chosen)
    }

    fn norm(&self, x: &Float, out: &mut Float) {
        let d = &self.0.device;
        self.attempt(|| {
            let mut scratch = self.scratch();
            let [partials] = scratch.take([8 * optimizer::NORM_SCRATCH])?;
            optimizer::norm(d, x.len(), x.ptr(), out.ptr(), partials.cast())
        });
    }

    fn zero(&self, x: &mut Float) {
        self.zero_range(x);
    }

    fn adamw(
        &self,
        step: &AdamWStep,
        grads: &Float,
        norm: &Float,
        values: &mut Float,
        first: &mut Float,
        second: &mut Float,
    ) {
        let settings = optimizer::AdamWStep {
            lr: step.lr,
            weight_decay: step.weight_decay,
            beta1: step.beta1,
            beta2: step.beta2,
            eps: step.eps,
            step: step.step,
            max_norm: step.max_norm,
        };
        let buffers = optimizer::AdamWBuffers {
            len: values.len(),
            grads: grads.ptr(),
            values: values.ptr(),
            first: first.ptr(),
            second: second.ptr(),
            shadow: Ptr::NULL,
            norm: norm.ptr(),
        };
        self.attempt(|| optimizer::adamw(&self.0.device, &settings, &buffers));
    }
}

/// Scratch of the embedding's gradient: the rows sorted by token, and the starts of the runs.
pub fn embed_bytes(tokens: usize) -> [usize; 2] {
    [4 * tokens, 4 * (tokens + 1)]
}
