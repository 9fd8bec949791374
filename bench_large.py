"""Sampling and training at Qwen3-8B's shape beside what the hardware allows, with random weights and forced lengths.

    python bench_large.py                   # in bf16 on CUDA; a tiny shape on a CPU
    python bench_large.py --contexts "" --rollouts 512 --step ""
    python bench_large.py --contexts "" --rollouts "" --step "5200,16384 checkpointing ragged"     # needs peft
    python bench_large.py --contexts "" --rollouts "" --vs-trl     # the same step by TRL too: pip install trl==1.16.0

Fixed rows: every slot at one context (64 different streams; the cache holds noise), timed with everything the host does.
Ragged rows: whole rollouts, from prompts to the end of turn 2, with log-normal lengths; only tokens that are kept count.
Up to the last refill every slot is busy; after it the longest rollouts decide.
The limit: each step reads all weights but the embedding table once, and each row its keys and values, at the measured bandwidth.
A GRPO step: LoRA of rank 32, `rows` rollouts of 1,024 tokens in one turn (or ragged, in two) after prompts of 250 shared by 8,
sampled and then trained by grpo.update, once to compile and once timed. Its limit is the measured rate of a matrix product at 4 floating-point operations a
parameter and token (forward and backward without the gradients of frozen weights; recomputation is not counted). No judge.
"""

import gc
import time
from dataclasses import dataclass, replace

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

import bench
import cli
import engine
import batch
import grpo
import models
from rollout import Rollout, Sampling, Span


@dataclass(frozen=True)
class Config:
    rows: int = cli.option(64, "slots")
    contexts: str = cli.option("384 3040", "contexts of the fixed rows")
    rollouts: str = cli.option("64 256", "numbers of ragged rollouts, in groups of 8 that share a prompt")
    step: str = cli.option(
        "16384 checkpointing,5200,16384 checkpointing ragged", "GRPO steps: tokens of a micro-batch, recomputing or not, lengths"
    )
    vs_trl: bool = cli.option(False, "measure the GRPO step of TRL's GRPOTrainer too")
    device: str = cli.option("auto", "auto, cpu or cuda")


LARGE = dict(
    vocab_size=151_936, hidden_size=4_096, intermediate_size=12_288, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, max_position_embeddings=40_960, rope_theta=1e6,
)  # fmt: skip
TINY = dict(
    vocab_size=1_536, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=40_960,
)  # fmt: skip
PROMPT, XC = 250, 200  # tokens
LENGTHS = ((1_500, 6_000), (900, 4_000))  # mean and largest number of sampled tokens of turns 1 and 2; sigma 0.7


def random_model(device: torch.device):
    shape, dtype = (LARGE, torch.bfloat16) if device.type == "cuda" else (TINY, torch.float32)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=False)).to(dtype)
    model.to_empty(device=device)
    for name, parameter in model.named_parameters():
        parameter.data.fill_(1.0) if "norm" in name else parameter.data.normal_(std=0.02)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    return model.eval()


def bandwidth(device: torch.device) -> float:
    """Bytes per second of reading memory, the best of a few passes over 4 GiB (CPU: 256 MiB)."""
    x = torch.ones(2**28 if device.type == "cuda" else 2**24, 4, device=device)
    best = min(timed(device, lambda: x.sum()) for _ in range(5))
    return x.nbytes / best


def timed(device: torch.device, function) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def random_ids(model, n: int) -> list[int]:
    return torch.randint(0, model.config.vocab_size, (n,)).tolist()


def fixed(model, rows: int, context: int, steps: int) -> float:
    """Seconds a step of `rows` rows whose context is `context` on average."""
    length = context - steps // 2 - engine.WINDOW
    prompts = [random_ids(model, length) for _ in range(rows)]
    sampling = Sampling(1.0, steps + engine.WINDOW, 1, rows)
    e = engine.Engine(model, prompts, random_ids(model, 2), [-1], sampling, torch.Generator(model.device).manual_seed(0))
    windows = steps // engine.WINDOW
    with engine.running(e), torch.inference_mode():
        for cache in e.cache:
            cache.normal_()
        e.start_jobs()
        for job in e.jobs.values():
            job.fed = len(job.stream) - 1  # the noise stands for the prompt
        e.window()  # compiles and captures
        return timed(model.device, lambda: [e.window() for _ in range(windows)]) / (windows * engine.WINDOW)


def ragged_lengths(n: int) -> list[list[int]]:
    """(n, 2): sampled tokens of both turns."""
    torch.manual_seed(0)
    lengths = []
    for mean, most in LENGTHS:
        draw = torch.exp(torch.randn(n) * 0.7 - 0.245) * mean  # E exp(0.7 z - 0.245) = 1
        lengths.append(draw.clamp(1, most).long())
    return torch.stack(lengths, dim=1).tolist()


def ragged(model, rows: int, n: int) -> tuple[list[list[int]], float, float]:
    """Lengths (n, 2) of n rollouts, seconds for all of them, and tokens per second up to the last refilled slot."""
    lengths = ragged_lengths(n)
    prompts = [ids for ids in (random_ids(model, PROMPT) for _ in range(-(-n // 8))) for _ in range(8)][:n]
    sampling = Sampling(1.0, LENGTHS[0][1], LENGTHS[1][1], rows)
    start = time.perf_counter()
    generator = torch.Generator(model.device).manual_seed(0)
    e = engine.Engine(model, prompts, random_ids(model, XC), [-1], sampling, generator)
    e.limits = [(a, LENGTHS[0][1] + c) for a, c in lengths]
    refilling = 0.0
    with engine.running(e), torch.inference_mode():
        while e.queue or e.jobs:
            e.start_jobs()
            e.window()
            if e.queue:
                refilling = kept_tokens(e) / (time.perf_counter() - start)
    return lengths, time.perf_counter() - start, refilling


def product_rate(model) -> float:
    """Floating-point operations per second of a large matrix product in the model's dtype."""
    n = 8_192 if model.device.type == "cuda" else 512
    a, b = torch.randn(2, n, n, device=model.device).to(model.dtype)
    return 2 * n**3 / min(timed(model.device, lambda: a @ b) for _ in range(20))


def grpo_step(model, lengths: list[list[int]], config: grpo.Config) -> tuple[float, float, int, dict]:
    """(seconds of sampling, seconds of training, trained tokens with what stands before them, statistics) of the second of
    two steps; lengths (n, 2) of both turns. A confession of one token stands for none: it is not trained."""
    prompts = [ids for ids in (random_ids(model, PROMPT) for _ in range(-(-len(lengths) // 8))) for _ in range(8)][: len(lengths)]
    most = [max(turn) for turn in zip(*lengths)]
    sampling = Sampling(1.0, *most, batch_size=len(lengths))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def sample() -> list[tuple]:
        e = engine.Engine(model, prompts, random_ids(model, XC), [-1], sampling, torch.Generator(model.device).manual_seed(0))
        e.limits = [(a, most[0] + c) for a, c in lengths]
        return e.run()

    for _ in range(2):
        out = []
        sampling_seconds = timed(model.device, lambda: out.extend(sample()))
        gc.collect()  # as engine.two_turns does
        rollouts = []
        for i, (prompt, (answer, joint, confession)) in enumerate(zip(prompts, out)):
            stream, advantage = prompt + answer[0] + joint + confession[0], 1.0 if i % 2 else -1.0
            end = PROMPT + len(answer[0])
            spans = (
                Span(PROMPT, end, "length", answer[1], advantage=advantage),
                Span(end + len(joint), len(stream), "length", confession[1], advantage=advantage * (len(confession[0]) > 1)),
            )
            rollouts.append(Rollout(i, None, *[""] * 6, stream, *spans))
        stats = {}
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        training_seconds = timed(model.device, lambda: stats.update(grpo.update(model, None, optimizer, rollouts, config)))
    weights = {name: [float(bool(r.spans[name].advantage)) for r in rollouts] for name in ("answer", "confession")}
    return sampling_seconds, training_seconds, sum(batch.trained_lengths(rollouts, weights).values()), stats


def kept_tokens(e: engine.Engine) -> int:
    """Tokens sampled so far that count: of finished turns, and of those under way."""
    cursors = e.host_state[engine.CURSOR]
    under_way = [int(cursors[slot]) - e.budgets[0] * job.turn for slot, job in e.jobs.items()]
    return sum(map(sum, e.lengths)) + sum(under_way)


def show_trl(model, config: Config) -> None:
    """TRL has no shared prompts and no second turn; its rollouts have the same numbers of tokens."""
    from peft import LoraConfig

    on_gpu = model.device.type == "cuda"
    tokens, words = (1_024, 240) if on_gpu else (32, 8)  # words of one token each; the chat template adds a few
    tokenizer = AutoTokenizer.from_pretrained(models.ORGANISMS / "policy")
    lora = LoraConfig(r=32, lora_alpha=64, target_modules=models.LORA_TARGETS, task_type="CAUSAL_LM")
    options = dict(learning_rate=1e-5, bf16=on_gpu, gradient_checkpointing=True, per_device_train_batch_size=8)
    prompts = [" the" * words + f" {i}" for i in range(config.rows)]
    found = bench.trl_steps(model, tokenizer, prompts, tokens, 8, 2, options, peft_config=lora)
    print(f"TRL GRPOTrainer, two steps   {found['fastest']:.2f} to {found['slowest']:.2f} s, peak {found['peak_gib']:.1f} GiB")


def main() -> None:
    config = cli.parse(Config, __doc__)
    with cli.user_errors():
        device = models.device_of(config.device)
        torch.manual_seed(0)
        model = random_model(device)
        speed = bandwidth(device)
        weights = sum(p.nbytes for p in model.parameters()) - model.get_input_embeddings().weight.nbytes
        shape = model.config
        per_token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * model.dtype.itemsize
        where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        print(
            f"{where}, torch {torch.__version__}, {speed / 1e12:.2f} TB/s read; {config.rows} rows, weights {weights / 1e9:.2f} GB"
        )
        print("rows                          tokens/s    limit   of it   seconds")
        show = lambda name, tokens, seconds, limit: print(
            f"{name:28} {tokens / seconds:9,.0f} {tokens / limit:8,.0f} {limit / seconds:7.0%} {seconds:9.2f}", flush=True
        )
        for context in map(int, config.contexts.split()):
            seconds = fixed(model, config.rows, context, steps=128)
            show(f"context {context:,}", config.rows, seconds, (weights + config.rows * context * per_token) / speed)
        for n in map(int, config.rollouts.split()):
            lengths, seconds, refilling = ragged(model, config.rows, n)
            tokens = sum(map(sum, lengths))
            read = sum(a * (PROMPT + a / 2) + c * (PROMPT + a + XC + c / 2) for a, c in lengths) * per_token
            show(f"ragged, {n} rollouts", tokens, seconds, (tokens / config.rows * weights + read) / speed)
            if refilling:
                print(f"    until the last refill    {refilling:9,.0f}", flush=True)
        if config.step:
            show_steps(model, config)
        if config.vs_trl:
            del model
            gc.collect()  # compiled layers refer to themselves
            torch.cuda.empty_cache()
            show_trl(random_model(device), config)


def show_steps(model, config: Config) -> None:
    on_gpu = model.device.type == "cuda"
    parameters, rate = model.num_parameters(), product_rate(model)
    model = models.add_lora(model.requires_grad_(False), 32)
    if on_gpu:
        models.compile_layers(model)
    print(f"GRPO step, {config.rows} rollouts      sample    train   tokens/s   of {rate / 1e12:.0f} TFLOP/s   peak GiB   gap")
    for setting in config.step.split(","):
        budget, *words = setting.split()
        if "checkpointing" in words:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.gradient_checkpointing_disable()
        lengths = ragged_lengths(config.rows) if "ragged" in words else [[1_024 if on_gpu else 32, 1]] * config.rows
        options = replace(grpo.Config(lora_rank=32), micro_batch_tokens=int(budget))
        sample, train, trained, stats = grpo_step(model, lengths, options)
        peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
        share = 4 * parameters * trained / train / rate
        print(
            f"{setting:28} {sample:9.2f} {train:8.2f} {trained / train:10,.0f} {share:16.0%} {peak:10.1f} "
            f"{stats['logprob_gap_answer']:6.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
