# UperNet on the maps of an encoder at strides 4, 8, 16 and 32; auxiliary head on stride 16.
_base_ = ["mmseg::_base_/models/upernet_r50.py"]
custom_imports = dict(imports=["codemae.mm", "codemae.mm.segmentation"], allow_failed_imports=False)
model = dict(
    pretrained=None,
    data_preprocessor=dict(
        _delete_=True,
        type="SegDataPreProcessor",
        size=(512, 512),
        pad_val=0,
        seg_pad_val=255,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        _delete_=True,
        type="CoDeMAEBackbone",
        encoder=None,
        modality="optical",
        channels=dict(optical=3, sar=3),
        out_channels=256,
        drop_path=0.15,
    ),
    decode_head=dict(in_channels=[256, 256, 256, 256], channels=512),
    auxiliary_head=dict(in_channels=256),
)
