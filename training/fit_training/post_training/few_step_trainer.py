"""The trainer of a student that makes in few steps what its teacher makes in many.

Knows where the student is taught and by whom; what it is to answer is `few_step.py`'s.

Dimension key: T packed tokens, S sequences, K token channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fit_models.diffusion.guidance import Guidance
from fit_models.diffusion.loss import noisy_tokens
from fit_models.diffusion.prediction import timestep_of_sigma
from fit_models.packing import PackedLayout
from fit_training.loop.config import RunConfig
from fit_training.loop.data import LatentBatch
from fit_training.loop.processes import Processes
from fit_training.loop.question import Question, square_loss
from fit_training.loop.sample_plan import SamplePlan
from fit_training.post_training.base_model import BaseModel
from fit_training.post_training.few_step import draw_edges, edge_target, student_starts
from fit_training.post_training.guided_teacher import GuidedTeacher
from fit_training.post_training.post_trainer import FullTrainer


class FewStepTrainer(FullTrainer):
    """Progressive distillation in one go, guidance folded in; see `few_step.py` for sources.

    The student begins as its teacher. No label is dropped: it is served without guidance. Every
    process holds the whole teacher beside its slices of the student.
    """

    def __init__(
        self, config: RunConfig, processes: Processes | None = None, *, base: BaseModel
    ) -> None:
        super().__init__(config, processes, base=base)
        self.teacher = base.network().requires_grad_(False).to(self.device)

    def sample_plan(self) -> SamplePlan:
        """As the student is served."""
        labels = tuple(self.labels.tolist())
        return SamplePlan(labels, num_steps=self.settings.student_steps, guidance_scale=1.0)

    def guidance(self) -> Guidance:
        """Of the teacher."""
        defaults = self.base.defaults
        scale = self.settings.guidance_scale or defaults.guidance_scale
        return Guidance(scale, defaults.guidance_interval)

    def question(
        self,
        batch: LatentBatch,
        layout: PackedLayout,
        generator: torch.Generator,
        dropout: float,
    ) -> Question:
        """One edge of each sequence: some from mixed data, some from the student's own steps."""
        settings, seq_of_token = self.settings, layout.seq_of_token
        count = len(batch.grids)
        edges = draw_edges(count, settings.student_steps, generator)
        noise_TK = torch.randn(batch.tokens.shape, generator=generator).to(self.device)
        own_S = torch.rand(count, generator=generator) < settings.on_policy_share
        label_S = self.labels[batch.labels].to(self.device)
        sigma_S = edges.sigma.to(self.device, torch.float32)
        data_TK = batch.tokens.to(self.device)
        x_TK = noisy_tokens(data_TK, noise_TK, sigma_S[seq_of_token][:, None])

        def student(tokens_TK: Tensor, levels_S: Tensor) -> Tensor:
            times_S = timestep_of_sigma(levels_S).to(self.device, torch.float32)
            return self.network(tokens_TK, layout, times_S, label_S)

        with self.autocast():
            # Asked of settings alone: all processes must run as many forwards.
            if settings.on_policy_share:
                own_TK = student_starts(
                    student, noise_TK, edges, seq_of_token, settings.student_steps
                )
                own_T1 = own_S.to(self.device)[seq_of_token][:, None]
                x_TK = torch.where(own_T1, own_TK, x_TK)
            teacher = GuidedTeacher(self.teacher, batch.grids, label_S, self.guidance())
            target_TK = edge_target(teacher, x_TK, edges, seq_of_token, settings.teacher_steps)
        times_S = timestep_of_sigma(sigma_S)
        return Question(x_TK, times_S, label_S, square_loss(target_TK, layout))
