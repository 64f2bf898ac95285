"""Live control in a PyTorch loop of your own. Run it, and in another terminal:

ftlab set latest learning_rate=1e-3 mix_ratio=0.9 --wait
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mlflow
import torch

from ftlab_mlflow import LiveLoop


def batch(mix_ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of a sine, and a share `mix_ratio` of them from a part of it that is harder to learn."""
    is_hard = torch.rand(64, 1) < mix_ratio
    x = torch.where(is_hard, torch.rand(64, 1) * 3 + 3, torch.rand(64, 1) * 3)
    return x, torch.sin(3 * x)


def main() -> None:
    """Fits a small network to a sine, with live control."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max_steps", type=int, default=30_000)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/plain"))
    parser.add_argument("--resume", type=Path, help="a checkpoint of this script")
    options = parser.parse_args()

    torch.set_num_threads(1)  # so small a network is faster on one core
    model = torch.nn.Sequential(
        torch.nn.Linear(1, 64),
        torch.nn.Tanh(),
        torch.nn.Linear(64, 64),
        torch.nn.Tanh(),
        torch.nn.Linear(64, 1),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.max_steps)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        x = torch.linspace(0, 6, 200)[:, None]
        return {"eval_loss": torch.nn.functional.mse_loss(model(x), torch.sin(3 * x)).item()}

    def checkpoint() -> Path:
        path = options.output_dir.resolve() / f"step-{live.steps_done}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({name: part.state_dict() for name, part in parts.items()}, path)
        return path

    live = LiveLoop(
        optimizer, scheduler, max_steps=options.max_steps, evaluate=evaluate, checkpoint=checkpoint
    )
    mix = live.tunable("mix_ratio", 0.5, min=0, max=1, help="Share of the harder points.")

    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "live": live}
    if options.resume:
        for name, state in torch.load(options.resume, weights_only=True).items():
            parts[name].load_state_dict(state)

    with live:
        print(f"Training run {live.run_id}. In another terminal:")
        print("  ftlab set latest mix_ratio=0.9 learning_rate=1e-3 --wait")
        print("  ftlab evaluate latest --wait", flush=True)
        for step in range(live.steps_done, options.max_steps):
            x, y = batch(mix.value)
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if step % 100 == 0:
                mlflow.log_metric("loss", loss.item(), step=step)
            if live.step():
                break
    print(f"{live.outcome} at step {live.steps_done}: {evaluate()}")


if __name__ == "__main__":
    main()
