"""The FiLM generator for kernel networks: conditioning vector -> (gamma, beta) per layer."""

from typing import Final

import torch
from torch import Tensor, nn

from regplug.errors import ShapeError, SpecError
from regplug.nn.printing import show_settings
from regplug.nn.readouts.sizes import check_sizes
from regplug.registry.integers import is_int


class KernelFiLMGenerator(nn.Module):
    """A two-layer MLP that gives one ``(gamma, beta)`` per hidden layer of a kernel network.

    ``h_l <- gamma_l * h_l + beta_l`` with ``(gamma, beta) = W2 gelu(W1 c + b1) + b2``. Initially the last bias is 1
    for gamma and 0 for beta, and the last weight is zero, so the modulation is the identity.

    The MLP's output is ``gamma_0, beta_0, gamma_1, beta_1, ...``, each ``kernel_hidden_dim`` wide.

    Source: nvSubquadratic, modules/film.py. Names, keys, initial values and weight-decay tags are the same.
    FiLM is Perez et al., 2017 (arXiv:1709.07871).

    Args:
        cond_dim: Width of the conditioning vector.
        kernel_hidden_dim: Width of each hidden layer that is modulated.
        num_film_layers: Number of pairs, one per hidden layer, >= 1.
        film_hidden_dim: Hidden width of the MLP.
        no_weight_decay: Tags for optimizers. Biases always get ``_no_weight_decay = True``. A float puts
            ``_weight_decay`` on the weights (0.0 too); any other true value tags the weights like the biases. It is
            kept as an attribute for ``regplug.param_groups``, because copies lose tags.
        init_type: ``"identity"``, or ``"small_random"``: the last weight is drawn from normal(0, init_std).
        init_std: Standard deviation for ``"small_random"``.

    Raises:
        SpecError: ``num_film_layers`` is below 1, a size is not a positive integer, or ``init_type`` is unknown.

    Example:
        >>> pairs = KernelFiLMGenerator(384, kernel_hidden_dim=32, num_film_layers=3)(torch.zeros(2, 384))
        >>> len(pairs), pairs[0][0].shape
        (3, torch.Size([2, 32]))
    """

    cond_dim: Final[int]
    kernel_hidden_dim: Final[int]
    num_film_layers: Final[int]
    film_hidden_dim: Final[int]

    def __init__(
        self,
        cond_dim: int,
        kernel_hidden_dim: int,
        num_film_layers: int,
        film_hidden_dim: int = 64,
        no_weight_decay: bool | float = False,
        init_type: str = "identity",
        init_std: float = 1e-4,
    ) -> None:
        if is_int(num_film_layers) and num_film_layers < 1:
            raise SpecError(f"num_film_layers must be >= 1, got {num_film_layers}")
        check_sizes(
            "KernelFiLMGenerator",
            cond_dim=cond_dim,
            kernel_hidden_dim=kernel_hidden_dim,
            num_film_layers=num_film_layers,
            film_hidden_dim=film_hidden_dim,
        )
        super().__init__()
        self.cond_dim = cond_dim
        self.kernel_hidden_dim = kernel_hidden_dim
        self.num_film_layers = num_film_layers
        self.film_hidden_dim = film_hidden_dim
        self.no_weight_decay = no_weight_decay
        first = nn.Linear(cond_dim, film_hidden_dim)  # in the source's order: a seed gives the same initial values
        last = nn.Linear(film_hidden_dim, num_film_layers * 2 * kernel_hidden_dim)
        self.mlp = nn.Sequential(first, nn.GELU(), last)
        self._initialise(last, init_type, init_std)
        self._tag(no_weight_decay)

    def _initialise(self, last: nn.Linear, init_type: str, init_std: float) -> None:
        if init_type == "identity":
            nn.init.zeros_(last.weight)
        elif init_type == "small_random":
            nn.init.normal_(last.weight, mean=0.0, std=init_std)
        else:
            raise SpecError(f"Unknown init_type: {init_type!r}. Expected 'identity' or 'small_random'.")
        with torch.no_grad():
            pairs = last.bias.view(self.num_film_layers, 2, self.kernel_hidden_dim)
            pairs[:, 0] = 1.0
            pairs[:, 1] = 0.0

    def _tag(self, no_weight_decay: bool | float) -> None:
        for name, parameter in self.mlp.named_parameters():
            if name.endswith("bias"):
                parameter._no_weight_decay = True  # type: ignore[attr-defined]
            elif isinstance(no_weight_decay, float):
                parameter._weight_decay = no_weight_decay  # type: ignore[attr-defined]
            elif no_weight_decay:
                parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def flop_count(self) -> int:
        """FLOPs for one sample: 2 per multiply-add of both layers, 1 per GELU."""
        hidden = self.film_hidden_dim
        return 2 * self.cond_dim * hidden + hidden + 2 * hidden * 2 * self.num_film_layers * self.kernel_hidden_dim

    extra_repr = show_settings

    def forward(self, conditioning: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Turn ``conditioning`` ``[B, cond_dim]`` into ``num_film_layers`` pairs, each ``[B, kernel_hidden_dim]``.

        Raises:
            ShapeError: The last size of ``conditioning`` is not ``cond_dim``.
        """
        if conditioning.dim() < 1 or conditioning.shape[-1] != self.cond_dim:
            raise ShapeError(
                f"FiLM generator: expected conditioning [B, {self.cond_dim}], got {list(conditioning.shape)}."
            )
        # one flat chunk: a nested chunk(2) is a tuple that TorchScript cannot type
        parts = self.mlp(conditioning).chunk(2 * self.num_film_layers, dim=-1)
        return [(parts[2 * layer], parts[2 * layer + 1]) for layer in range(self.num_film_layers)]
