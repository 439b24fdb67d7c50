# DIOR as the CoDe-MAE paper states it: Faster R-CNN, cross-entropy, L1, 12 epochs; the last one counts.
# 79.00 AP50 (paper); not yet run here.
_base_ = [
    "./_base_/models/faster-rcnn_itpn.py",
    "./_base_/datasets/dior.py",
    "./_base_/schedules/adamw_1x.py",
    "./_base_/runtime.py",
]

protocol = "paper"
model = dict(
    data_preprocessor={{_base_.data_preprocessor}},
    roi_head=dict(bbox_head=dict(num_classes=20)),
)
