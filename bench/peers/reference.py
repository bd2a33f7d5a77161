"""The two published systems, networks and loops, plainly as published.

Written apart from fastdiff's own networks, tables and kernels (nothing of them is imported), for tests and
benchmarks to compare with. Schedules and coefficients are float32 tensors and every time embedding is computed
inside every step, as the tutorials have it. Noise is passed in as a callable, so that two loops can share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Model = Callable[..., Tensor]  # (x, t[, context]) → the noise
Noise = Callable[[int], Tensor]  # 0 → x_T, k → the k-th noise added after that

# --- System A: The Annotated Diffusion Model ------------------------------------------------------------------


class SinusoidalPositionEmbeddings(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, time: Tensor) -> Tensor:
        half_dim = self.dim // 2
        embeddings = math.log(10000) / (half_dim - 1)
        embeddings = torch.exp(torch.arange(half_dim, device=time.device) * -embeddings)
        embeddings = time[:, None] * embeddings[None, :]
        return torch.cat((embeddings.sin(), embeddings.cos()), dim=-1)


class ConvNextBlock(nn.Module):
    def __init__(self, dim, dim_out, time_emb_dim, mult, gelu, bias):
        super().__init__()
        self.mlp = (
            nn.Sequential(nn.GELU(approximate=gelu), nn.Linear(time_emb_dim, dim)) if time_emb_dim is not None else None
        )
        self.ds_conv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim, bias=bias)
        self.net = nn.Sequential(
            nn.GroupNorm(1, dim),
            nn.Conv2d(dim, dim_out * mult, 3, padding=1, bias=bias),
            nn.GELU(approximate=gelu),
            nn.GroupNorm(1, dim_out * mult),
            nn.Conv2d(dim_out * mult, dim_out, 3, padding=1, bias=bias),
        )
        self.res_conv = nn.Conv2d(dim, dim_out, 1, bias=bias) if dim != dim_out else nn.Identity()

    def forward(self, x, time_emb=None):
        h = self.ds_conv(x)
        if self.mlp is not None:
            condition = self.mlp(time_emb)
            h = h + condition.view(*condition.shape, 1, 1)
        h = self.net(h)
        return h + self.res_conv(x)


class Block(nn.Module):
    def __init__(self, dim, dim_out, groups):
        super().__init__()
        self.proj = nn.Conv2d(dim, dim_out, 3, padding=1)
        self.norm = nn.GroupNorm(groups, dim_out)
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.norm(self.proj(x)))


class ResnetBlock(nn.Module):
    def __init__(self, dim, dim_out, time_emb_dim, groups):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_emb_dim, dim_out)) if time_emb_dim is not None else None
        self.block1 = Block(dim, dim_out, groups)
        self.block2 = Block(dim_out, dim_out, groups)
        self.res_conv = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x, time_emb=None):
        h = self.block1(x)
        if self.mlp is not None:
            time_emb = self.mlp(time_emb)
            h = time_emb.view(*time_emb.shape, 1, 1) + h
        h = self.block2(h)
        return h + self.res_conv(x)


class Attention(nn.Module):
    def __init__(self, dim, heads=4, dim_head=32):
        super().__init__()
        self.scale, self.heads = dim_head**-0.5, heads
        self.to_qkv = nn.Conv2d(dim, dim_head * heads * 3, 1, bias=False)
        self.to_out = nn.Conv2d(dim_head * heads, dim, 1)

    def forward(self, x):
        b, _, h, w = x.shape
        q, k, v = (part.reshape(b, self.heads, -1, h * w) for part in self.to_qkv(x).chunk(3, dim=1))
        q = q * self.scale
        sim = torch.einsum("bhdi,bhdj->bhij", q, k)
        sim = sim - sim.amax(dim=-1, keepdim=True)
        attn = sim.softmax(dim=-1)
        out = torch.einsum("bhij,bhdj->bhid", attn, v)
        return self.to_out(out.permute(0, 1, 3, 2).reshape(b, -1, h, w))


class LayerNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))

    def forward(self, x):
        mean = x.mean(dim=1, keepdim=True)
        var = ((x - mean) ** 2).mean(dim=1, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * self.g


class LinearAttention(nn.Module):
    def __init__(self, dim, channel_norm, divide_v, heads=4, dim_head=32):
        super().__init__()
        self.scale, self.heads, self.divide_v = dim_head**-0.5, heads, divide_v
        self.to_qkv = nn.Conv2d(dim, dim_head * heads * 3, 1, bias=False)
        norm = LayerNorm(dim) if channel_norm else nn.GroupNorm(1, dim)
        self.to_out = nn.Sequential(nn.Conv2d(dim_head * heads, dim, 1), norm)

    def forward(self, x):
        b, _, h, w = x.shape
        q, k, v = (part.reshape(b, self.heads, -1, h * w) for part in self.to_qkv(x).chunk(3, dim=1))
        q = q.softmax(dim=-2)
        k = k.softmax(dim=-1)
        q = q * self.scale
        if self.divide_v:
            v = v / (h * w)
        context = torch.einsum("bhdn,bhen->bhde", k, v)
        out = torch.einsum("bhde,bhdn->bhen", context, q)
        return self.to_out(out.reshape(b, -1, h, w))


class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.fn, self.norm = fn, nn.GroupNorm(1, dim)

    def forward(self, x):
        return self.fn(self.norm(x))


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x) + x


class AnnotatedReference(nn.Module):
    """edition: "mindspore" (run in PyTorch: tanh GELU, few biases), "mindspore-torch" or "hf-2022"."""

    def __init__(
        self,
        dim=28,
        init_dim=None,
        dim_mults=(1, 2, 4),
        channels=1,
        edition="mindspore-torch",
        block="convnext",
        mult=2,
        groups=8,
    ):
        super().__init__()
        gelu = "tanh" if edition == "mindspore" else "none"
        bias, channel_norm = edition != "mindspore", edition != "hf-2022"
        init_dim = dim // 3 * 2 if init_dim is None else init_dim
        dims = [init_dim] + [dim * m for m in dim_mults]
        in_out = list(zip(dims[:-1], dims[1:], strict=True))
        time_dim = dim * 4

        def klass(cin, cout, time_emb_dim=time_dim):
            if block == "convnext":
                return ConvNextBlock(cin, cout, time_emb_dim, mult, gelu, bias)
            return ResnetBlock(cin, cout, time_emb_dim, groups)

        def linear(width):
            return Residual(PreNorm(width, LinearAttention(width, channel_norm, divide_v=channel_norm)))

        self.init_conv = nn.Conv2d(channels, init_dim, 7, padding=3)
        self.time_mlp = nn.Sequential(
            SinusoidalPositionEmbeddings(dim),
            nn.Linear(dim, time_dim),
            nn.GELU(approximate=gelu),
            nn.Linear(time_dim, time_dim),
        )
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for ind, (dim_in, dim_out) in enumerate(in_out):
            is_last = ind >= len(in_out) - 1
            down = nn.Conv2d(dim_out, dim_out, 4, 2, 1, bias=bias) if not is_last else nn.Identity()
            self.downs.append(nn.ModuleList([klass(dim_in, dim_out), klass(dim_out, dim_out), linear(dim_out), down]))
        mid_dim = dims[-1]
        self.mid_block1 = klass(mid_dim, mid_dim)
        self.mid_attn = Residual(PreNorm(mid_dim, Attention(mid_dim)))
        self.mid_block2 = klass(mid_dim, mid_dim)
        for dim_in, dim_out in reversed(in_out[1:]):
            up = nn.ConvTranspose2d(dim_in, dim_in, 4, 2, 1, bias=bias)
            self.ups.append(nn.ModuleList([klass(dim_out * 2, dim_in), klass(dim_in, dim_in), linear(dim_in), up]))
        self.final_conv = nn.Sequential(klass(dim, dim, None), nn.Conv2d(dim, channels, 1, bias=bias))

    def forward(self, x, time):
        x = self.init_conv(x)
        t = self.time_mlp(time)
        h = []
        for block1, block2, attn, downsample in self.downs:
            x = block1(x, t)
            x = block2(x, t)
            x = attn(x)
            h.append(x)
            x = downsample(x)
        x = self.mid_block1(x, t)
        x = self.mid_attn(x)
        x = self.mid_block2(x, t)
        for block1, block2, attn, upsample in self.ups:
            x = torch.cat((x, h.pop()), dim=1)
            x = block1(x, t)
            x = block2(x, t)
            x = attn(x)
            x = upsample(x)
        return self.final_conv(x)


class AnnotatedLoop:
    """p_sample_loop of the tutorial, for betas (T,) float32."""

    def __init__(self, betas: Tensor) -> None:
        self.betas = betas
        alphas = 1.0 - betas
        alphas_cumprod = torch.cumprod(alphas, dim=0)
        alphas_cumprod_prev = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0)
        self.sqrt_recip_alphas = torch.sqrt(1.0 / alphas)
        self.sqrt_one_minus_alphas_cumprod = torch.sqrt(1.0 - alphas_cumprod)
        self.posterior_variance = betas * (1.0 - alphas_cumprod_prev) / (1.0 - alphas_cumprod)

    @torch.no_grad()
    def p_sample(self, model: Model, x: Tensor, t: int, z: Tensor | None) -> Tensor:
        """One step; z is the noise that is added, None where t = 0."""
        time = torch.full((len(x),), t, dtype=torch.long, device=x.device)
        mean = self.sqrt_recip_alphas[t] * (x - self.betas[t] * model(x, time) / self.sqrt_one_minus_alphas_cumprod[t])
        return mean if z is None else mean + torch.sqrt(self.posterior_variance[t]) * z

    def p_sample_last(self, model: Model, noise: Noise) -> Tensor:
        """p_sample_loop's sample, no frame kept."""
        img, steps = noise(0), len(self.betas)
        for k, t in enumerate(reversed(range(steps))):
            img = self.p_sample(model, img, t, noise(k + 1) if t else None)
        return img

    def p_sample_loop(self, model: Model, noise: Noise) -> list[Tensor]:
        """Every frame, on the host, as the tutorial keeps them; the last is the sample."""
        img, frames, steps = noise(0), [], len(self.betas)
        for k, t in enumerate(reversed(range(steps))):
            img = self.p_sample(model, img, t, noise(k + 1) if t else None)
            frames.append(img.cpu())
        return frames


# --- Samplers that were published apart from either system ---------------------------------------------------


def ddim_step(x: Tensor, out: Tensor, now: Tensor, after: Tensor | float) -> Tensor:
    """Song et al. 2021, eq. 12 with eta = 0. now, after: alphas_cumprod of this node and of the next, 1 at the end."""
    after = torch.as_tensor(after)
    x0 = (x - (1 - now).sqrt() * out) / now.sqrt()
    return after.sqrt() * x0 + (1 - after).sqrt() * out


def ancestral_step(x: Tensor, out: Tensor, now: Tensor, after: Tensor, z: Tensor) -> Tensor:
    """Song et al. 2021, eq. 12 with eta = 1, which is DDPM's posterior between those two nodes."""
    sigma = ((1 - after) / (1 - now) * (1 - now / after)).sqrt()
    x0 = (x - (1 - now).sqrt() * out) / now.sqrt()
    return after.sqrt() * x0 + (1 - after - sigma**2).sqrt() * out + sigma * z


@torch.no_grad()
def ddim_loop(model: Callable[[Tensor, int], Tensor], abar: Tensor, nodes: list[int], noise: Noise) -> Tensor:
    """abar: alphas_cumprod by timestep; nodes: timesteps in falling order; model: (x, timestep) → the noise."""
    x = noise(0)
    for t, following in zip(nodes, [*nodes[1:], None], strict=True):
        after = torch.ones_like(abar[0]) if following is None else abar[following]
        x = ddim_step(x, model(x, t), abar[t], after)
    return x


@torch.no_grad()
def dpmpp_2m_loop(model: Callable[[Tensor, int], Tensor], abar: Tensor, nodes: list[int], noise: Noise) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2; first order in the first step and the last, which ends clean."""
    x, before, h_before = noise(0), None, None
    for t, following in zip(nodes, [*nodes[1:], None], strict=True):
        alpha, sigma = abar[t].sqrt(), (1 - abar[t]).sqrt()
        x0 = (x - sigma * model(x, t)) / alpha
        if following is None:
            return x0
        alpha_next, sigma_next = abar[following].sqrt(), (1 - abar[following]).sqrt()
        h = (alpha_next / sigma_next).log() - (alpha / sigma).log()
        d = x0 if before is None else x0 + h / (2 * h_before) * (x0 - before)
        x = sigma_next / sigma * x - alpha_next * torch.expm1(-h) * d
        before, h_before = x0, h
    raise ValueError("no nodes")


# --- System B: How Diffusion Models Work ----------------------------------------------------------------------


class ResidualConvBlock(nn.Module):
    """shortcut: "random" (as published: drawn anew in every pass), "zero", or "trained"."""

    def __init__(self, cin, cout, is_res=False, shortcut="random"):
        super().__init__()
        self.same_channels, self.is_res, self.kind = cin == cout, is_res, shortcut
        self.conv1 = nn.Sequential(nn.Conv2d(cin, cout, 3, 1, 1), nn.BatchNorm2d(cout), nn.GELU())
        self.conv2 = nn.Sequential(nn.Conv2d(cout, cout, 3, 1, 1), nn.BatchNorm2d(cout), nn.GELU())
        if is_res and not self.same_channels and shortcut == "trained":
            self.shortcut = nn.Conv2d(cin, cout, 1)

    def forward(self, x):
        x1 = self.conv1(x)
        x2 = self.conv2(x1)
        if not self.is_res:
            return x2
        if self.same_channels:
            return (x + x2) / 1.414
        if self.kind == "zero":
            return x2 / 1.414
        shortcut = self.shortcut if self.kind == "trained" else nn.Conv2d(x.shape[1], x2.shape[1], 1).to(x.device)
        return (shortcut(x) + x2) / 1.414


class UnetDown(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.model = nn.Sequential(ResidualConvBlock(cin, cout), ResidualConvBlock(cout, cout), nn.MaxPool2d(2))

    def forward(self, x):
        return self.model(x)


class UnetUp(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.model = nn.Sequential(
            nn.ConvTranspose2d(cin, cout, 2, 2), ResidualConvBlock(cout, cout), ResidualConvBlock(cout, cout)
        )

    def forward(self, x, skip):
        return self.model(torch.cat((x, skip), 1))


class EmbedFC(nn.Module):
    def __init__(self, input_dim, emb_dim):
        super().__init__()
        self.input_dim = input_dim
        self.model = nn.Sequential(nn.Linear(input_dim, emb_dim), nn.GELU(), nn.Linear(emb_dim, emb_dim))

    def forward(self, x):
        return self.model(x.view(-1, self.input_dim))


class ContextReference(nn.Module):
    def __init__(self, in_channels, n_feat=256, n_cfeat=10, height=28, shortcut="random"):
        super().__init__()
        self.n_feat, self.n_cfeat = n_feat, n_cfeat
        self.init_conv = ResidualConvBlock(in_channels, n_feat, is_res=True, shortcut=shortcut)
        self.down1 = UnetDown(n_feat, n_feat)
        self.down2 = UnetDown(n_feat, 2 * n_feat)
        self.to_vec = nn.Sequential(nn.AvgPool2d(4), nn.GELU())
        self.timeembed1, self.timeembed2 = EmbedFC(1, 2 * n_feat), EmbedFC(1, n_feat)
        self.contextembed1, self.contextembed2 = EmbedFC(n_cfeat, 2 * n_feat), EmbedFC(n_cfeat, n_feat)
        self.up0 = nn.Sequential(
            nn.ConvTranspose2d(2 * n_feat, 2 * n_feat, height // 4, height // 4), nn.GroupNorm(8, 2 * n_feat), nn.ReLU()
        )
        self.up1 = UnetUp(4 * n_feat, n_feat)
        self.up2 = UnetUp(2 * n_feat, n_feat)
        self.out = nn.Sequential(
            nn.Conv2d(2 * n_feat, n_feat, 3, 1, 1),
            nn.GroupNorm(8, n_feat),
            nn.ReLU(),
            nn.Conv2d(n_feat, in_channels, 3, 1, 1),
        )

    def forward(self, x, t, c=None):
        x = self.init_conv(x)
        down1 = self.down1(x)
        down2 = self.down2(down1)
        hiddenvec = self.to_vec(down2)
        if c is None:
            c = torch.zeros(x.shape[0], self.n_cfeat).to(x)
        cemb1 = self.contextembed1(c).view(-1, self.n_feat * 2, 1, 1)
        temb1 = self.timeembed1(t).view(-1, self.n_feat * 2, 1, 1)
        cemb2 = self.contextembed2(c).view(-1, self.n_feat, 1, 1)
        temb2 = self.timeembed2(t).view(-1, self.n_feat, 1, 1)
        up1 = self.up0(hiddenvec)
        up2 = self.up1(cemb1 * up1 + temb1, down2)
        up3 = self.up2(cemb2 * up2 + temb2, down1)
        return self.out(torch.cat((up3, x), 1))


class CourseLoop:
    """sample_ddpm and sample_ddim of the course, with its schedule of T + 1 points."""

    def __init__(self, timesteps: int = 500, beta1: float = 1e-4, beta2: float = 0.02) -> None:
        self.timesteps = timesteps
        self.b_t = (beta2 - beta1) * torch.linspace(0, 1, timesteps + 1) + beta1
        self.a_t = 1 - self.b_t
        self.ab_t = torch.cumsum(self.a_t.log(), dim=0).exp()
        self.ab_t[0] = 1

    def to(self, device: torch.device) -> CourseLoop:
        self.b_t, self.a_t, self.ab_t = (table.to(device) for table in (self.b_t, self.a_t, self.ab_t))
        return self

    def denoise_add_noise(self, x: Tensor, t: int, pred_noise: Tensor, z: Tensor | float) -> Tensor:
        noise = self.b_t.sqrt()[t] * z
        mean = (x - pred_noise * ((1 - self.a_t[t]) / (1 - self.ab_t[t]).sqrt())) / self.a_t[t].sqrt()
        return mean + noise

    def denoise_ddim(self, x: Tensor, t: int, t_prev: int, pred_noise: Tensor) -> Tensor:
        ab, ab_prev = self.ab_t[t], self.ab_t[t_prev]
        x0_pred = ab_prev.sqrt() / ab.sqrt() * (x - (1 - ab).sqrt() * pred_noise)
        return x0_pred + (1 - ab_prev).sqrt() * pred_noise

    @torch.no_grad()
    def sample_ddpm(self, model: Model, noise: Noise, context=None, extra_noise: bool = True) -> Tensor:
        """extra_noise=False is the course's "incorrect" sampling without the added noise."""
        samples = noise(0)
        for k, i in enumerate(range(self.timesteps, 0, -1)):
            t = torch.tensor([i / self.timesteps]).to(samples.device)[:, None, None, None]
            z = noise(k + 1) if i > 1 and extra_noise else 0.0
            samples = self.denoise_add_noise(samples, i, model(samples, t, context), z)
        return samples

    @torch.no_grad()
    def sample_ddim(self, model: Model, noise: Noise, n: int = 20, context=None) -> Tensor:
        """n must divide T; other n walk to a negative index in the published code."""
        samples, step_size = noise(0), self.timesteps // n
        for i in range(self.timesteps, 0, -step_size):
            t = torch.tensor([i / self.timesteps]).to(samples.device)[:, None, None, None]
            samples = self.denoise_ddim(samples, i, i - step_size, model(samples, t, context))
        return samples
