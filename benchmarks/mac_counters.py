"""The two MAC counters side by side over small members of timm's families: ours on meta against fvcore on real tensors.

    python benchmarks/mac_counters.py [--out results/mac_counters.csv] [NAME ...]

Each name is built as a classifier at its default image size. Written are, per name: MACs by our counter, by torch's
FlopCounterMode on meta (halved), by fvcore with the handlers that it lacks, and fvcore's sum as it is shipped; fvcore's
style by both counters; what either leaves uncounted; and CPU seconds. A summary is printed.
"""

from __future__ import annotations

import argparse
import time
import warnings

import pandas as pd
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from fpn_bench.profiling import count_macs_fvcore, static_profile

NAMES = """
beit3_base_patch16_224 beit_base_patch16_224 beitv2_base_patch16_224 cait_xxs24_224 coat_lite_tiny coatnet_pico_rw_224
coatnext_nano_rw_224 convformer_s18 convit_tiny convmixer_1024_20_ks9_p14 convnext_zepto_rms convnextv2_atto
cpubone_b0_bfrobust crossvit_tiny_240 cs3darknet_s csatv2 cspnext_l darknet17 darknet21 davit_tiny
deit3_small_patch16_224 deit_tiny_patch16_224 densenet121 densenet169 densenet201 dla46_c dla46x_c dla60x_c dpn48b
dpn68 dpn68b eca_halonext26ts eca_nfnet_l0 eca_vovnet39b ecaresnext26t_32x4d edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw eva02_tiny_patch14_224
fasternet_t0 fastvit_t8 flexivit_small focalnet_tiny_srf gcvit_xxtiny gernet_s ghostnet_050 ghostnetv2_100
ghostnetv3_050 gmixer_12_224 gmlp_ti16_224 halonet_h1 haloregnetz_b hardcorenas_a hgnet_tiny hgnetv2_b0 hiera_tiny_224
hieradet_small hrnet_w18_small iformer_h inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnet_035
lcnetv2_base legacy_seresnet18 legacy_xception levit_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256 mixer_s32_224
mnasnet_small mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small_035 mobilenetv5_base mobileone_s0
mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small nf_regnet_b0 nfnet_l0 pit_ti_224 poolformer_s12
poolformerv2_s12 pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002 regnetz_005 repghostnet_050 repvgg_a0 repvit_m0_9
res2net50_48w_2s res2net50d res2next50 resnest14d resnest26d resnest50d_4s2x40d resnet10t resnet14t resnetv2_18
rexnet_100 rexnetr_100 samvit_base_patch16_224 selecsls42 selecsls42b selecsls60 sequencer2d_s shvit_s1 skresnet18
skresnet34 skresnet50 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_cr_tiny_224
swinv2_tiny_window8_256 tiny_vit_5m_224 tinynet_e tnt_s_legacy_patch16_224 tresnet_v2_l twins_svt_small vgg11 vgg13
vgg16 visformer_tiny vit_relpos_small_patch16_224 vit_small_patch16_rope_224 vit_small_patch32_224
vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224 vovnet39a xception41 xception41p xception65p xcit_nano_12_p16_224
""".split()  # noqa: SIM905  (as a list it would take a line each)


def compare(name: str) -> dict[str, object]:
    """One row."""
    model = timm.create_model(name).eval().requires_grad_(False)
    size = model.pretrained_cfg["input_size"][-2:]
    images = torch.zeros(1, 3, *size)
    start = time.process_time()
    ours = static_profile({"model": (model, images)})
    middle = time.process_time()
    second = count_macs_fvcore(model, images)
    end = time.process_time()
    with torch.no_grad(), FlopCounterMode(display=False) as torchs:
        model.to("meta")(images.to("meta"))
    return {
        "name": name,
        "family": type(model).__module__.removeprefix("timm.models."),
        "image_size": f"{size[0]}x{size[1]}",
        "params": ours.params,
        "macs": ours.macs,
        "macs_flop_counter": torchs.get_total_flops() // 2,
        "macs_fvcore": second.macs,
        "macs_fvcore_style": ours.macs_fvcore_style,
        "macs_fvcore_style_by_fvcore": second.macs_fvcore_style,
        "macs_fvcore_as_shipped": second.macs_as_shipped,
        "uncounted": " ".join(ours.uncounted),
        "uncounted_by_fvcore": " ".join(second.uncounted),
        "meta_cpu_s": round(middle - start, 3),
        "fvcore_cpu_s": round(end - middle, 3),
    }


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="timm names instead of the list here")
    parser.add_argument("--out", help="CSV to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for i, name in enumerate(options.names, 1):
        rows.append(compare(name))
        print(f"{i}/{len(options.names)} {name}", flush=True)
        if options.out:
            pd.DataFrame(rows).to_csv(options.out, index=False)
    table = pd.DataFrame(rows)
    print(f"\n{len(table)} models of {table['family'].nunique()} families")
    for column, against in (
        ("macs_flop_counter", "macs"),
        ("macs_fvcore", "macs"),
        ("macs_fvcore_as_shipped", "macs"),
        ("macs_fvcore_style_by_fvcore", "macs_fvcore_style"),
    ):
        off = (table[column] / table[against] - 1).abs()
        worst = table.loc[off.idxmax(), "name"]
        print(
            f"{column} against {against}: equal {int((off == 0).sum())}, within 0.5 % {int((off <= 0.005).sum())}, "
            f"within 1 % {int((off <= 0.01).sum())}; farthest {100 * off.max():.2f} % ({worst})"
        )
    for column in ("uncounted", "uncounted_by_fvcore"):
        named = table.loc[table[column] != "", "name"]
        print(f"{column}: {', '.join(named) or 'nothing'}")
    print(f"CPU s: {table['meta_cpu_s'].sum():.1f} on meta, {table['fvcore_cpu_s'].sum():.1f} by fvcore")


if __name__ == "__main__":
    main()
