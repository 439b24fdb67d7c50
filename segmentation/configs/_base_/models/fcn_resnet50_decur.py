# DeCUR's decoder: class maps of the last three levels of a ResNet-50, upsampled and summed.
_base_ = ["mmseg::_base_/models/fcn_r50-d8.py"]
custom_imports = dict(imports=["codemae.mm", "codemae.mm.segmentation"], allow_failed_imports=False)
model = dict(
    pretrained=None,
    data_preprocessor=dict(
        _delete_=True,
        type="SegDataPreProcessor",
        size=(256, 256),
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
    ),
    decode_head=dict(
        _delete_=True,
        type="SumOfLevelsHead",
        in_channels=[512, 1024, 2048],
        in_index=[1, 2, 3],
        stride=8,
        num_classes=10,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
